"""Runs as early versions wrote them, without digests."""

import json
from pathlib import Path

import safetensors
import safetensors.numpy

from iwae.config.schema import RunConfig
from iwae.storage import run_directory


def forget(run: Path, config: RunConfig | None = None) -> None:
    """Make the files of a run those of an early version, with another configuration if given."""
    config = config or run_directory.read_config(run)
    for path in (run / run_directory.MODEL, run / run_directory.CHECKPOINT):
        if path.exists():
            with safetensors.safe_open(path, framework="numpy") as file:
                header = file.metadata()["header"]
            arrays = safetensors.numpy.load_file(path)
            path.write_bytes(safetensors.numpy.save(arrays, {"header": header}))
    evaluations = run / run_directory.EVALUATION
    if evaluations.exists():
        kept = {n: e.to_json() for n, e in run_directory.read_evaluations(run).items()}
        evaluations.write_text(json.dumps(kept, indent=1))
    (run / run_directory.CONFIG).write_text(config.to_toml())
