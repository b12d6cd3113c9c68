"""A measurement as a file: settings, versions, and a figure for each contestant and turn."""

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn

from iwae._utils.files import write_atomic
from iwae.experiments.comparisons import versions
from iwae.storage import persisted

FOLDER = Path("results/tables")


@dataclass(frozen=True)
class Figure:
    """What one contestant reached in one turn."""

    of: str
    """The data set, and what else distinguishes the case."""
    by: str
    """The contestant."""
    measure: str
    turn: str
    """The split or mask."""
    value: float
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Record:
    """All figures of a command."""

    about: str
    settings: dict[str, str]
    machine: dict[str, str]
    figures: tuple[Figure, ...]

    def of(self, case: str, by: str, measure: str) -> list[Figure]:
        """The figures of a contestant, in the order of its turns."""
        wanted = (case, by, measure)
        found = [f for f in self.figures if (f.of, f.by, f.measure) == wanted]
        return sorted(found, key=lambda figure: figure.turn)

    def values(self, case: str, by: str, measure: str) -> np.ndarray:
        return np.array([figure.value for figure in self.of(case, by, measure)])

    def cases(self) -> list[str]:
        return list(dict.fromkeys(figure.of for figure in self.figures))

    def contestants(self, case: str) -> list[str]:
        return list(dict.fromkeys(f.by for f in self.figures if f.of == case))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over turns and its standard error, nan for a single turn."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1) / n**0.5) if n > 1 else float("nan")


def machine() -> dict[str, str]:
    """Versions, device and number of cores."""
    found = versions() | {"scikit-learn": sklearn.__version__, "python": platform.python_version()}
    return found | {"cores": str(os.cpu_count())}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def write(name: str, record: Record) -> None:
    """Write a record. Figures of the same case, contestant, measure and turn replace those that a
    file of this name has; its others stay."""
    path = path_of(name)
    kept = read(name).figures if path.exists() else ()
    key = lambda figure: (figure.of, figure.by, figure.measure, figure.turn)
    figures = {key(f): f for f in (*kept, *record.figures)}
    whole = dataclasses.replace(record, figures=tuple(figures.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(dataclasses.asdict(whole), indent=1, ensure_ascii=False) + "\n")


def read(name: str) -> Record:
    """The record of a command."""
    return persisted.typed(persisted.parsed(path_of(name).read_bytes()), Record)
