"""Run folders packed into a few files, which is all that a lent machine may give back."""

import io
import tarfile
from pathlib import Path

from iwae._utils.files import write_atomic
from iwae.storage.run_directory import CHECKPOINT, CONFIG, MODEL

LARGEST = 15 * 2**20
"""Bytes of an archive that holds several runs."""

MOST = 6
"""Archives; beside them lie the record and the log."""

NAME = "papers-{}.tar"


def pack(runs: Path, out: Path) -> list[Path]:
    """Every run below `runs` into `out`/papers-1.tar, …; the archives written.

    A run that has its model needs its checkpoint no longer. What finds no place in `MOST` archives
    of `LARGEST` bytes is left out.
    """
    folders = sorted(config.parent for config in runs.rglob(CONFIG))
    parts: list[list[Path]] = [[]]
    for folder in folders:
        files = _kept(folder)
        size = sum(f.stat().st_size for f in files)
        if parts[-1] and sum(f.stat().st_size for f in parts[-1]) + size > LARGEST:
            parts.append([])
        parts[-1] += files
    written = []
    for i, files in enumerate([p for p in parts if p][:MOST], 1):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for file in files:
                archive.add(file, file.relative_to(runs))
        written.append(out / NAME.format(i))
        write_atomic(written[-1], content.getvalue())
    for stale in set(out.glob(NAME.format("*"))) - set(written):
        stale.unlink()
    return written


def _kept(folder: Path) -> list[Path]:
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and not f.name.startswith(".")]
    if (folder / MODEL).exists():
        return [f for f in files if f.name != CHECKPOINT]
    return files


def unpack(out: Path, runs: Path) -> None:
    """The runs of the archives in `out`, below `runs`."""
    for path in sorted(out.glob(NAME.format("*"))):
        with tarfile.open(path) as archive:
            archive.extractall(runs, filter="data")
