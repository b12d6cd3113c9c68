"""Runs as early versions wrote them, without digests."""

import json
from pathlib import Path

import safetensors
import safetensors.numpy

from iwae import folder
from iwae.config.schema import RunConfig


def forget(run: Path, config: RunConfig | None = None) -> None:
    """Make the files of a run those of an early version, with another configuration if given."""
    config = config or folder.read_config(run)
    for path in (run / folder.MODEL, run / folder.CHECKPOINT):
        if path.exists():
            with safetensors.safe_open(path, framework="numpy") as file:
                header = file.metadata()["header"]
            arrays = safetensors.numpy.load_file(path)
            path.write_bytes(safetensors.numpy.save(arrays, {"header": header}))
    evaluations = run / folder.EVALUATION
    if evaluations.exists():
        kept = folder.read_evaluations(run)
        evaluations.write_text(json.dumps(kept, indent=1))
    (run / folder.CONFIG).write_text(config.to_toml())
