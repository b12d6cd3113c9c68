"""What a run is: the settings in its config.toml, and the identity that all of its files carry."""

import hashlib
import json
import re
from collections.abc import Mapping
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
"""What the directory of a replica is called, before its seed."""

SAVING = ("checkpoint_every", "checkpoint_minutes")
"""Settings that say when a run is saved, and nothing of what it becomes."""

MOVED = ("dataset", "values", "start_from")
"""Settings that say where something lies, or what its values were taken for by themselves; it is
what they lead to that counts."""

FIRST_LINE = re.compile(r"# iwae: run ([0-9a-f]{64}), sha256 of the settings ([0-9a-f]{64})\n")
"""The identity of the run, and a digest of it and the settings."""


OWN = re.compile(r"# parts of its own: (\{.*\})\n")
"""The names of parts that are objects of the user's own, by what they stand for."""


def identity(config: RunConfig, seen: Observation, own: Mapping[str, str] | None = None) -> str:
    """A digest of what a run is: its data, its settings but for those that say where the data
    lie, when it is saved, or how long it runs, and the names of parts of one's own.

    Only settings that are not the default count, so that it outlives the settings to come.
    """
    free = {*SAVING, *MOVED, "minutes"}
    if config.training.schedule == "constant":
        free.add("epochs")
    settings = {n: v for n, v, _ in differences(config, RunConfig()) if n not in free}
    begun = config.training.start_from is not None
    data = [seen.kind, seen.scale, list(seen.shape), seen.binarization, seen.digest]
    return persisted.digest([settings, begun, data, *([dict(own)] if own else [])])


def config_text(config: RunConfig, run: str, own: Mapping[str, str] | None = None) -> str:
    """The text of config.toml: a comment with the identity of the run and a digest, which are left
    out while that is not known, one with the names of parts of one's own, and the settings."""
    text = config.to_toml()
    if not run:
        return text
    if own:
        text = f"# parts of its own: {json.dumps(dict(own))}\n{text}"
    return f"# iwae: run {run}, sha256 of the settings {_sha256(run, text)}\n{text}"


def read_config(path: Path) -> RunConfig:
    """The configuration of a run directory; `InputError` if it is not one, or is damaged."""
    return read_config_and_identity(path)[0]


def read_config_and_identity(path: Path) -> tuple[RunConfig, str]:
    """The configuration of a run directory, and the identity of the run, empty if an early version
    kept none; `InputError` if it is no run directory, or the file is damaged or was edited."""
    if not (path / CONFIG).is_file():
        if several := replicas(path):
            raise InputError(f"{path} holds replicas, not a run; give one of them: {several[0]}.")
        exists = "is not the folder of a run" if path.exists() else "does not exist"
        raise InputError(f"{path} {exists}; give a folder that `iwae train --out` made.")
    file = path / CONFIG
    text = read_text(file)
    found = FIRST_LINE.match(text)
    if found is None:
        _check_early(path, text)
        return parse(text, str(file)), ""
    settings = text[found.end() :]
    if found[2] != _sha256(found[1], settings):
        raise _edited(file, "its digest is not that of its settings")
    return parse(settings, str(file)), found[1]


def read_own(path: Path) -> dict[str, str]:
    """Names of the parts of a run that are objects of the user's own, by what they stand for:
    model, bound, estimator, likelihood; raises what `read_config_and_identity` raises."""
    read_config_and_identity(path)
    text = read_text(path / CONFIG)
    first = FIRST_LINE.match(text)
    found = None if first is None else OWN.match(text, first.end())
    if found is None:
        return {}
    try:
        return persisted.typed(persisted.parsed(found[1]), dict[str, str])
    except MistypedError as error:
        raise _edited(path / CONFIG, "its parts of its own cannot be read") from error


def replicas(path: Path) -> list[Path]:
    """The runs of `iwae train --seeds` in a directory, by seed."""
    found = [p for p in path.glob(f"{REPLICA}*") if (p / CONFIG).is_file()]
    seeds = {p: read_config(p).seed for p in found}
    own = [p for p in found if p.name == f"{REPLICA}{seeds[p]}"]
    return sorted(own, key=lambda p: seeds[p])


def _check_early(path: Path, text: str) -> None:
    """`InputError` unless a configuration without a digest is whole, and its run has none."""
    others = (checkpoint.written_about(path / name) for name in (MODEL, CHECKPOINT))
    if text.startswith("#") or any(other.get("run") for other in others):
        raise _edited(path / CONFIG, "it lacks its digest")
    if "\n[training]\n" not in text or "\ncheckpoint_minutes = " not in text:
        raise _edited(path / CONFIG, "it has no end")


def _edited(file: Path, why: str) -> InputError:
    remedy = "put it back as `iwae train` wrote it, or train with other settings into another --out"
    return InputError(f"{file} is damaged or was edited ({why}); {remedy}.")


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
