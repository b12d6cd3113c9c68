"""Compiled programs, kept in a folder from one process to the next by JAX's persistent cache."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from iwae._utils.files import cache_folder
from iwae.errors import InputError

VARIABLE = "IWAE_COMPILATION_CACHE"
"""The environment variable that switches the folder off."""

MOST = 2**30
"""Bytes that the folder holds; the programs that were used longest ago make room."""

WORTH = 0.3
"""Seconds of compilation from which a program is kept."""


def keep_programs() -> None:
    """Let JAX keep what it compiles in the user's cache (`folder`), unless the user has said where.

    What JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE or `jax.config` say is left as it
    is. `InputError` if IWAE_COMPILATION_CACHE is neither on nor off.
    """
    asked = os.environ.get(VARIABLE, "").lower() or "on"
    if asked not in ("on", "off"):
        raise InputError(f"{VARIABLE} is {os.environ[VARIABLE]!r}; set it to on or off.")
    config: Any = jax.config
    enabled = asked == "on" and config.jax_enable_compilation_cache
    said = "JAX_COMPILATION_CACHE_DIR" in os.environ or config.jax_compilation_cache_dir is not None
    if said or not enabled:
        return
    place = folder()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # there is no place to keep anything
        return
    if not os.access(place, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    for name, ours in (
        ("jax_compilation_cache_max_size", MOST),
        ("jax_persistent_cache_min_compile_time_secs", WORTH),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, ours)


def folder() -> Path:
    """Where programs are kept: in the user's cache, apart for each kind of processor, since a
    program of another one may end in an illegal instruction."""
    kind = hashlib.sha256(f"{platform.machine()} {_abilities()}".encode()).hexdigest()[:12]
    return cache_folder() / "programs" / kind


def _abilities() -> str:
    """What the processor can do, as Linux lists it; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    listed = ("flags", "features", "model name")
    return "".join(next((e for e in lines if e.lower().startswith(name)), "") for name in listed)
