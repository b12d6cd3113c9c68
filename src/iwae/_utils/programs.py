"""The persistent cache of compiled programs."""

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from iwae._utils.files import cache_folder
from iwae.errors import InputError

VARIABLE = "IWAE_COMPILATION_CACHE"
"""The environment variable that switches the cache off."""

MOST = 2**30
"""Largest size of the cache in bytes; the least recently used programs are evicted."""

WORTH = 0.3
"""Programs that compile in fewer seconds are not cached."""


def keep_programs() -> None:
    """Let JAX cache compiled programs in the user's cache (`folder`).

    JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE and `jax.config` take precedence.
    `InputError` if IWAE_COMPILATION_CACHE is neither on nor off.
    """
    asked = os.environ.get(VARIABLE, "").lower() or "on"
    if asked not in ("on", "off"):
        raise InputError(
            f"{VARIABLE} is {os.environ[VARIABLE]!r}, but must be on or off; change or unset it."
        )
    config: Any = jax.config
    enabled = asked == "on" and config.jax_enable_compilation_cache
    chosen = "JAX_COMPILATION_CACHE_DIR" in os.environ or config.jax_compilation_cache_dir
    if chosen or not enabled:
        return
    place = folder()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # nowhere to write the cache
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
    """The directory of the cache, one for each kind of processor, since a program compiled for
    another may use illegal instructions."""
    kind = hashlib.sha256(f"{platform.machine()} {_abilities()}".encode()).hexdigest()[:12]
    return cache_folder() / "programs" / kind


def _abilities() -> str:
    """The processor's features, as Linux lists them; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    listed = ("flags", "features", "model name")
    return "".join(next((e for e in lines if e.lower().startswith(name)), "") for name in listed)
