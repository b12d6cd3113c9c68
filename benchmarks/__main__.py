"""`python -m benchmarks`: measure, print a table, write JSON.

Needs the extra `bench` (PyTorch). Times of one machine are comparable with each other only; what
travels is the ratio, taken turn by turn within one run.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import torch
from rich.console import Console
from rich.table import Table

import iwae
from benchmarks import page
from benchmarks.agreement import DisagreementError
from benchmarks.cases import CASES, SMOKE, Result
from benchmarks.floor import rates
from benchmarks.markdown import number
from benchmarks.timing import FULL, QUICK, Effort, medians, ratios, shortest

WIDTH = 130
"""Columns of the table where the output is no terminal."""


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # the rivals run there, whatever else there is
    arguments = parsed()
    cases = selected(arguments.cases, quick=arguments.quick)
    effort = QUICK if arguments.quick else FULL
    console, about, rows = Console(), machine(), {}
    with console.status("rates"):
        rates()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for name, case in cases.items():
        with console.status(name):
            try:
                with Others() as others:
                    result = case(effort)
            except DisagreementError as error:
                sys.exit(f"{name}: the rivals compute different things. {error}")
        rows[name] = record(result, others.share)
    console.print(table(rows), *notes(about, rows), sep="\n", highlight=False)
    content = {"machine": about, "effort": asdict(effort), "rates": asdict(rates()), "cases": rows}
    out = arguments.out
    if out is None and not (arguments.quick or arguments.cases):
        out = page.SOURCE
        page.write(content)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n")


def selected(pattern: str, *, quick: bool) -> dict[str, Callable[[Effort], Result]]:
    """The cases whose name contains `pattern`; with `quick` and no pattern, one of each kind."""
    names = SMOKE if quick and not pattern else [name for name in CASES if pattern in name]
    if not names:
        sys.exit(f"No case contains {pattern!r}; there are: {'; '.join(CASES)}.")
    return {name: CASES[name] for name in names}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    default = f"JSON file (default: {page.SOURCE} and the page for all cases, none for some)"
    parser.add_argument("--out", type=Path, help=default)
    parser.add_argument("--quick", action="store_true", help="a smoke run of one case of each kind")
    parser.add_argument("--cases", default="", metavar="PATTERN", help="cases that contain this")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What the times depend on; the load average says how busy the machine was before."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "pythae": version("pythae"),
        "pyro": version("pyro-ppl"),
        "numpyro": version("numpyro"),
        "iwae": iwae.__version__,
    }


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Others:
    """The share of the machine's cores that other processes had while the block ran.

    None where there is no /proc/stat.
    """

    share: float | None = None

    def __enter__(self) -> "Others":
        self.before = _processor_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        after = _processor_seconds()
        if self.before and after:
            busy, idle, own = (b - a for a, b in zip(self.before, after, strict=True))
            self.share = round(max(0.0, busy - own) / (busy + idle), 3)


def _processor_seconds() -> tuple[float, float, float] | None:
    """(busy, idle, by this process and its children), summed over cores."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(n) / os.sysconf("SC_CLK_TCK") for n in stat.read_text().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, idle, sum(os.times()[:4])


def record(result: Result, others: float | None) -> dict[str, Any]:
    """A case's entry in the JSON file."""
    return {
        **asdict(result),
        "median": medians(result.times),
        "shortest": shortest(result.times),
        "ratio": ratios(result.times),
        "multiple": _multiple(result),
        "others": others,
    }


def _multiple(result: Result) -> float | None:
    """How many times its floor iwae takes."""
    return medians(result.times)["iwae"] / sum(result.floor.values()) if result.floor else None


RIVALS = ("torch", "torch tuned", "pythae", "pyro", "numpyro", "one by one")


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """One line per case: our median over turns, and how many times longer the rivals took."""
    heads = ("", "iwae", "", "/ floor", *(f"{name} / iwae" for name in RIVALS), "others")
    grid = Table(*heads, title="medians over turns; ratios within turns")
    for name, row in rows.items():
        ratio = [row["ratio"].get(n, {}).get("median") for n in RIVALS]
        others = "" if row["others"] is None else f"{row['others']:.0%}"
        figures = [number(row["median"]["iwae"]), row["unit"], number(row["multiple"])]
        grid.add_row(name, *figures, *map(number, ratio), others)
    grid.caption = "others: the cores' time that other processes took; above 5 %, distrust the row"
    return grid


def notes(about: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[str]:
    """The machine, and the remark of each case that has one."""
    remarks = [f"{name}: {row['note']}" for name, row in rows.items() if row["note"]]
    return [", ".join(f"{name} {value}" for name, value in about.items()), *remarks]


if __name__ == "__main__":
    main()
