"""The config.toml of a run, and the identity that all files of a run carry."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from iwae._utils.files import OF_A_RUN
from iwae.config.io import differences, parse, read_text
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.models.observation import Observation
from iwae.storage import checkpoint, persisted
from iwae.storage.persisted import MistypedError

CONFIG, METRICS, CHECKPOINT, MODEL, EVALUATION = OF_A_RUN

REPLICA = "seed-"
"""Prefix of a replica's directory, before its seed."""

SAVING = ("checkpoint_every", "checkpoint_minutes")
"""Settings that determine when a run is saved, but not its result."""

MOVED = ("dataset", "values", "schema", "start_from")
"""Settings that locate or describe data; the identity uses the data themselves instead."""

FIRST_LINE = re.compile(r"# iwae: run ([0-9a-f]{64}), sha256 of the settings ([0-9a-f]{64})\n")
"""The identity of the run, and a digest of the identity and the settings."""


OWN = re.compile(r"# parts of its own: (\{.*\})\n")
"""The names of the user's own parts, as JSON."""


def identity(config: RunConfig, seen: Observation, own: Mapping[str, str] | None = None) -> str:
    """A digest of a run: its data, its settings, and the names of the user's own parts.

    Settings that say where the data are, when the run is saved or how long it trains do not count,
    nor do those at their default, so that new settings do not change the identity. The columns of a
    table count; other data have none.
    """
    free = {*SAVING, *MOVED, "minutes"}
    if config.has_open_end:
        free.add("epochs")
    settings = {n: v for n, v, _ in differences(config, RunConfig()) if n not in free}
    begun = config.training.start_from is not None
    data: list[object] = [seen.kind, seen.scale, list(seen.shape), seen.binarization, seen.digest]
    if seen.schema is not None:
        data.append(asdict(seen.schema))
    return persisted.digest([settings, begun, data, *([dict(own)] if own else [])])


def config_text(config: RunConfig, run: str, own: Mapping[str, str] | None = None) -> str:
    """The text of config.toml: the identity of the run and a digest as a comment (left out while
    the identity is unknown), the names of the user's own parts as another, and the settings."""
    text = config.to_toml()
    if not run:
        return text
    if own:
        text = f"# parts of its own: {json.dumps(dict(own))}\n{text}"
    return f"# iwae: run {run}, sha256 of the settings {_sha256(run, text)}\n{text}"


def read_config(path: Path) -> RunConfig:
    """The configuration of a run directory; errors as in `read_config_and_identity`."""
    return read_config_and_identity(path)[0]


def read_config_and_identity(path: Path) -> tuple[RunConfig, str]:
    """The configuration of a run directory and the identity of the run, empty for early versions.

    `InputError` if it is not a run directory, or if its config.toml is damaged or was edited.
    """
    if not (path / CONFIG).is_file():
        if several := replicas(path):
            raise InputError(f"{path} holds replicas, not a run; give one of them: {several[0]}.")
        why = "is not a run directory" if path.exists() else "does not exist"
        raise InputError(f"{path} {why}; give a directory written by `iwae train --out`.")
    file = path / CONFIG
    text = read_text(file)
    found = FIRST_LINE.match(text)
    if found is None:
        _check_early(path, text)
        return parse(text, str(file)), ""
    settings = text[found.end() :]
    if found[2] != _sha256(found[1], settings):
        raise _edited(file, "its digest does not match its settings")
    return parse(settings, str(file)), found[1]


def read_own(path: Path) -> dict[str, str]:
    """The names of the user's own parts of a run, by kind, such as model or bound.

    Errors as in `read_config_and_identity`.
    """
    read_config_and_identity(path)
    text = read_text(path / CONFIG)
    first = FIRST_LINE.match(text)
    found = None if first is None else OWN.match(text, first.end())
    if found is None:
        return {}
    try:
        return persisted.typed(persisted.parsed(found[1]), dict[str, str])
    except MistypedError as error:
        raise _edited(path / CONFIG, "the names of its parts cannot be read") from error


def replicas(path: Path) -> list[Path]:
    """The runs of `iwae train --seeds` in a directory, by seed."""
    found = [p for p in path.glob(f"{REPLICA}*") if (p / CONFIG).is_file()]
    seeds = {p: read_config(p).seed for p in found}
    own = [p for p in found if p.name == f"{REPLICA}{seeds[p]}"]
    return sorted(own, key=lambda p: seeds[p])


def _check_early(path: Path, text: str) -> None:
    """`InputError` unless a configuration without a digest is complete and of an early version."""
    others = (checkpoint.written_about(path / name) for name in (MODEL, CHECKPOINT))
    if text.startswith("#") or any(other.get("run") for other in others):
        raise _edited(path / CONFIG, "it lacks its digest")
    if "\n[training]\n" not in text or "\ncheckpoint_minutes = " not in text:
        raise _edited(path / CONFIG, "it is incomplete")


def _edited(file: Path, why: str) -> InputError:
    remedy = "restore it as `iwae train` wrote it, or train with other settings into another --out"
    return InputError(f"{file} is damaged or was edited ({why}); {remedy}.")


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
