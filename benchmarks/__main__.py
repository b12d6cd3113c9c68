"""`python -m benchmarks`: measure, print a table, write JSON.

Needs the extra `bench` (PyTorch). Times of one machine are comparable with each other only; what
travels is the ratio, taken turn by turn within one run.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import torch
from rich.console import Console
from rich.table import Table

import iwae
from benchmarks.cases import CASES, DisagreementError, Result
from benchmarks.timing import FULL, QUICK, medians, ratios

OUT = Path("results/benchmarks/cpu.json")


def main() -> None:
    arguments = parsed()
    cases = {name: case for name, case in CASES.items() if arguments.cases in name}
    if not cases:
        sys.exit(f"No case contains {arguments.cases!r}; there are: {'; '.join(CASES)}.")
    effort = QUICK if arguments.quick else FULL
    console, about, rows = Console(), machine(), {}
    for name, case in cases.items():
        with console.status(name):
            try:
                rows[name] = record(case(effort))
            except DisagreementError as error:
                sys.exit(f"{name}: PyTorch and iwae compute different things. {error}")
    console.print(table(rows), f"{about}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": about, "effort": asdict(effort), "cases": rows}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"JSON file (default: {OUT})")
    parser.add_argument("--quick", action="store_true", help="a smoke run: numbers mean little")
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
        "iwae": iwae.__version__,
    }


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(result: Result) -> dict[str, Any]:
    """A case's entry in the JSON file."""
    return {
        **asdict(result),
        "median": medians(result.times),
        "ratio": ratios(result.times),
    }


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """One line per case: medians over turns, and how many times longer the rivals took."""
    heads = ("", "unit", "iwae", "torch", "torch fused", "torch / iwae", "torch fused / iwae")
    grid = Table(*heads, title="median over turns; ratio: median (min–max) over turns")
    for name, row in rows.items():
        middle = [f"{row['median'][n]:.3g}" if n in row["median"] else "" for n in heads[2:5]]
        ratio = [spread(row["ratio"].get(n)) for n in ("torch", "torch fused")]
        grid.add_row(name, row["unit"], *middle, *ratio)
    return grid


def spread(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"


if __name__ == "__main__":
    main()
