"""`python -m benchmarks.gpu`: everything that is to be measured on a GPU, in so many minutes.

The most valuable comes first, every figure is on the disk before the next is measured, no failure
stops what follows, and a second call goes on where the first ended (docs/gpu.md).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import archives, record
from benchmarks.gpu.items import ITEMS
from benchmarks.gpu.schedule import RECORD, Schedule
from iwae.errors import InputError, nearest


def main() -> None:
    try:
        sys.exit(run(parsed()))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="0 measures nothing")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="at most 8 files, 16 MiB each"
    )
    parser.add_argument(
        "--previous",
        type=Path,
        metavar="DIR|FILE.json",
        help="go on from the files of an earlier call, or from a record alone",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE.json", help="a copy of the record, to be kept"
    )
    parser.add_argument(
        "--items", metavar="A,B", help=f"only these; all are {', '.join(i.name for i in ITEMS)}"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on any machine")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST's files lie")
    return parser.parse_args()


def backend() -> str:
    """JAX's platform, asked in another process: this one must not hold a card that others need."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def run(given: argparse.Namespace) -> int:
    """Work for so many minutes; 0, or 1 if an item failed. `InputError` for unusable arguments."""
    began = time.time()
    if not given.minutes >= 0:
        raise InputError(f"--minutes {given.minutes} was given; give 0 or more.")
    names = [i.name for i in ITEMS]
    chosen = given.items.split(",") if given.items else names
    for name in chosen:
        if name not in names:
            raise InputError(f"There is no item {name!r}; {nearest(name, names)}.")
    if given.minutes > 0 and not given.rehearse and backend() == "cpu":
        raise InputError(
            "There is no GPU that JAX can use here; go where one is, or give --rehearse to try "
            "everything in tiny sizes."
        )
    given.out.mkdir(parents=True, exist_ok=True)
    previous = given.previous or given.out
    before = previous if previous.suffix == ".json" else previous / RECORD
    if given.previous is not None and not before.exists():
        raise InputError(
            f"There is no {before}, so there is nothing to go on from; give the --out of an "
            f"earlier call, or leave --previous out."
        )
    content = record.Record(given.rehearse)
    if before.exists():
        content = record.read(before)
        if content.rehearsal != given.rehearse:
            kind = "a rehearsal" if content.rehearsal else "no rehearsal"
            raise InputError(f"{previous} is of {kind}; give another --out for what is.")
    with tempfile.TemporaryDirectory(prefix="iwae-gpu-", ignore_cleanup_errors=True) as work:
        archives.unpack(previous, Path(work))
        schedule = Schedule(
            content,
            given.out,
            Path(work),
            until=began + 60 * given.minutes,
            rehearse=given.rehearse,
            data_dir=given.data_dir,
        )
        with schedule.interruptible():
            for item in ITEMS:
                if item.name in chosen:
                    schedule.do(item)
        schedule.keep()
    if given.record is not None:
        record.write(given.record, schedule.record)
    for done in schedule.record.work:
        print(f"{done.item:18} {done.state:10} {done.seconds:6.1f} s  {done.why}")
    return 1 if any(w.state == "failed" for w in schedule.record.work) else 0


if __name__ == "__main__":
    main()
