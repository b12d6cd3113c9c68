"""docs/performance.md from recorded results: `python -m benchmarks.page` writes it again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import page as gpu
from benchmarks.markdown import number, section
from benchmarks.tracing import PARTS
from iwae.config.io import differences, override, recipe, recipe_names
from iwae.config.schema import RunConfig
from iwae.experiments.against_time import Curve, Snapshot
from iwae.plotting import figures

SOURCE = Path("results/benchmarks/cpu.json")
PAGE = Path("docs/performance.md")
PRECISIONS = Path("results/comparisons/mnist-precisions.json")
MINUTES = {
    "vae-1": ("Minutes to the likelihood of a VAE", (95.0, 90.0, 88.0)),
    "iwae-50": ("Minutes to the likelihood of IWAE-50", (95.0, 90.0, 87.0)),
}
"""Title and marks, in nats, of each record of `benchmarks.minutes`, by the end of its name."""

HEAD = """\
# Performance

`make bench` measured what follows and wrote this page from
`{source}`. Times are of one machine and comparable with each other
only; what travels is the ratio, taken turn by turn within one run: {turns} turns of about
{seconds} s each for every contestant, medians, with the range over turns. A wide range tells of a
machine whose speed fluctuated.

{machine}.

**Rivals.** *torch* is a plain PyTorch loop without data loader (`benchmarks/torch_iwae.py`);
*tuned* is the fastest of Adam fused on one core or on all, or `torch.compile` as well. *pythae* is
its IWAE in the same loop, *pyro* and *numpyro* are their RenyiELBO with α = 0
(`benchmarks/rivals.py`); pythae has one stochastic layer only. NumPyro runs many steps in one
compiled loop through iwae's own layers, so that it does the same arithmetic and nothing but the
bound, the draws and the call of Adam are its own. All hold the same weights, and before anything is
timed bounds or gradients are compared with ours.

**Floor.** Matrix products at {operations:.0f} GFLOP/s, Adam's arrays at {bytes:.0f} GB/s (they
stay in the cache), {normals:.0f} million normal draws and {bits:.0f} million random words a second,
each as fast as this machine did it alone, one after the other (`benchmarks/floor.py`).
Elementwise functions are not in it.
"""


def write(content: dict[str, Any]) -> None:
    """Write the page and its pictures."""
    PAGE.write_text(rendered(content))
    for name in MINUTES:
        if (record := minutes_of(name)) is not None:
            curves = [curve_of(contestant) for contestant in record["contestants"]]
            lines = [(curve.name, curve.points) for curve in curves if curve.points]
            PAGE.with_name(f"minutes-{name}.svg").write_bytes(figures.nll_curves(lines))


def minutes_of(name: str) -> dict[str, Any] | None:
    """The record of `benchmarks.minutes` by the end of its name, if there is one."""
    file = SOURCE.with_name(f"minutes-{name}.json")
    return json.loads(file.read_text()) if file.exists() else None


def rendered(content: dict[str, Any]) -> str:
    """The page as Markdown."""
    cases = content["cases"]
    sections = [
        _head(content),
        *(
            minutes(title, record, f"minutes-{name}.svg", marks)
            for name, (title, marks) in MINUTES.items()
            if (record := minutes_of(name)) is not None
        ),
        _training({n: c for n, c in cases.items() if n.startswith("training")}),
        _anatomy(_starting(cases, "anatomy")),
        _floors({n: c for n, c in cases.items() if c["floor"] and not n.startswith("scaling")}),
        _beyond(cases),
        _rest("Evaluation", _starting(cases, "evaluation")),
        _replicas(_starting(cases, "five replicas")),
        _estimators(_starting(cases, "estimators")),
        _recipe(_starting(cases, "recipe fast"), content["machine"]["iwae"]),
        _rest(
            "Start-up and memory", _starting(cases, "import", "help", "first step", "peak memory")
        ),
        _scaling(_starting(cases, "scaling")),
        _precisions(json.loads(PRECISIONS.read_text())),
        *gpu.sections(),
    ]
    return "\n".join(s for s in sections if s)


def _starting(cases: dict[str, Any], *beginnings: str) -> dict[str, Any]:
    return {n: c for n, c in cases.items() if n.startswith(beginnings)}


def _head(content: dict[str, Any]) -> str:
    r, effort = content["rates"], content["effort"]
    return HEAD.format(
        source=SOURCE,
        turns=effort["turns"],
        seconds=effort["seconds"],
        machine=", ".join(f"{n.replace('_', ' ')} {v}" for n, v in content["machine"].items()),
        operations=r["operations"] / 1e9,
        bytes=r["bytes"] / 1e9,
        normals=r["normals"] / 1e6,
        bits=r["bits"] / 1e6,
    )


def minutes(title: str, content: dict[str, Any], picture: str, marks: Sequence[float]) -> str:
    """NLL against minutes of training, and to the marks, from a record of `benchmarks.minutes`."""
    measure = content["measure"]
    curves = [curve_of(contestant) for contestant in content["contestants"]]
    rows = [
        [
            curve.name,
            ", ".join(map(str, curve.runs)),
            "" if curve.minutes is None else f"{curve.minutes:.1f}",
            curve.nll_in_words,
            "" if curve.spread is None else f"{curve.spread:.2f}",
            *(_reached(curve.reaching(mark)) for mark in marks),
        ]
        for curve in curves
    ]
    heads = ["", "seeds", "minutes", "NLL", "range", *(f"minutes to {mark:g}" for mark in marks)]
    machine = content["machine"]
    return "\n".join(
        [
            section(title, heads, rows),
            f"![NLL against minutes of training]({picture})",
            "",
            f"−L_{measure['k']} of at most {measure['limit']:,} images of the split "
            f"{measure['split']}, in nats: median over seeds ± standard error over images, and "
            f"from the lowest seed to the highest. Minutes are those of training alone, one "
            f"contestant after the other on {machine['cores']} cores of {machine['processor']}. "
            f"By `python -m benchmarks.minutes`. Models are evaluated on the way, each time after "
            f"√2 times the minutes before, so that minutes to a value are rounded up.",
            *_beside(curves),
            "",
        ]
    )


def _beside(curves: Sequence[Curve]) -> list[str]:
    """Lines on the settings, budgets apart, in which contestants differ from their recipes."""
    found = {
        curve.name: ", ".join(
            f"without {name}" if value is None else f"{name} `{value}`"
            for name, value, _ in differences(curve.config, recipe(curve.name))
            if name != "minutes"
        )
        for curve in curves
        if curve.name in recipe_names()
    }
    differing = "; ".join(f"{name}, {settings}" for name, settings in found.items() if settings)
    return ["", f"Settings that are not those of the recipe: {differing}."] if differing else []


def curve_of(contestant: dict[str, Any]) -> Curve:
    """The snapshots of a contestant, or of a recipe of `iwae compare recipes`."""
    taken = {
        run["seed"]: [Snapshot(**snapshot) for snapshot in run["snapshots"]]
        for run in contestant["runs"]
    }
    failures = {run["seed"]: run["failure"] for run in contestant["runs"] if "failure" in run}
    config = override(RunConfig(), **contestant["settings"])
    return Curve(contestant["name"], config, taken, failures)


def _reached(found: float | None) -> str:
    return "not reached" if found is None else f"{found:.1f}"


def _training(cases: dict[str, Any]) -> str:
    rivals = ("torch", "torch tuned", "pythae", "pyro", "numpyro")
    rows = [
        [
            n.removeprefix("training step, "),
            number(c["median"]["iwae"]),
            *(_ratio(c, r) for r in rivals),
            c["note"].removeprefix("tuned: "),
        ]
        for n, c in cases.items()
    ]
    heads = ["batch 20 unless said", "iwae, ms/step", *(f"{r} / iwae" for r in rivals), "tuned by"]
    return section("Training step", heads, rows)


def _floors(cases: dict[str, Any]) -> str:
    purposes = ("products", "memory", "normals", "bits")
    rows = [
        [
            n,
            c["unit"],
            *(number(c["floor"].get(p)) for p in purposes),
            number(c["median"]["iwae"] - sum(c["floor"].values())),
            number(c["median"]["iwae"]),
            f"{c['multiple']:.2f}",
        ]
        for n, c in cases.items()
    ]
    heads = ["", "unit", *purposes, "all else", "iwae", "iwae / floor"]
    return section("Distance to the floor", heads, rows) + "".join(
        f"\n{_least(n, c)}\n" for n, c in cases.items() if n.startswith("evaluation")
    )


def _least(name: str, case: dict[str, Any]) -> str:
    """What an evaluation cannot do without, in words."""
    least, whole = sum(case["floor"].values()), case["median"]["iwae"]
    return (
        f"{name[0].upper()}{name[1:]}: products and normal draws at this machine's best rate take "
        f"{least:.0f} s of its {whole:.0f}; the likelihoods of {5000 * 784 * 10_000 / 1e9:.0f} "
        f"billion pixels, tanh and the weights have the other {whole - least:.0f} s."
    )


def _anatomy(cases: dict[str, Any]) -> str:
    rows = [
        [n.removeprefix("anatomy, "), *(f"{1e3 * c['parts'][p]:.0f}" for p in PARTS)]
        for n, c in cases.items()
    ]
    text = section("Where every microsecond goes", ["µs of a step", *PARTS.values()], rows)
    return "\n".join([text, ANATOMY])


ANATOMY = """\
Each instruction's share of a traced step (`benchmarks/tracing.py`), of the time that a step takes
untraced; instructions that run at once share the time.
"""


FLOORS = {"products": "products", "images": "bits", "draws": "normals", "adam": "memory"}
"""The parts of a step that a floor is known of, and its name."""


def _beyond(cases: dict[str, Any]) -> str:
    """What each part of a traced step adds to its floor, in multiples of the floor."""
    rows = []
    for name, case in _starting(cases, "anatomy").items():
        step = name.removeprefix("anatomy, ")
        floor = cases[f"training step, {step}"]["floor"]
        whole = sum(floor.values())
        added = {p: case["parts"][p] - floor.get(FLOORS.get(p), 0.0) for p in PARTS}
        parts = (f"{added[p] / whole:+.2f}" for p in PARTS)
        rows.append([step, number(whole), *parts, f"{1 + sum(added.values()) / whole:.2f}"])
    heads = ["", "floor, ms", *PARTS.values(), "step / floor"]
    text = section("What stands between a step and its floor", heads, rows)
    return "\n".join([text, BEYOND]) if rows else ""


BEYOND = """\
All in multiples of the floor. Of a part that has a floor, the entry is its time beyond it;
elementwise functions have none. Step / floor is of the traced steps, so it differs from "Distance
to the floor" where the machine's speed did.
"""


def _rest(title: str, cases: dict[str, Any]) -> str:
    rows = [
        [
            n,
            c["unit"],
            number(c["median"]["iwae"]),
            *(_ratio(c, r) for r in ("torch", "torch tuned")),
        ]
        for n, c in cases.items()
    ]
    remarks = [f"{n}: {c['note']}." for n, c in cases.items() if c["note"]]
    text = section(title, ["", "unit", "iwae", "torch / iwae", "torch tuned / iwae"], rows)
    return "\n".join([text, *remarks, ""]) if rows and remarks else text


def _replicas(cases: dict[str, Any]) -> str:
    rows = [[n, number(c["median"]["iwae"]), _ratio(c, "one by one")] for n, c in cases.items()]
    heads = ["", "one step of all, ms", "five runs one by one / iwae"]
    return section("Replicas", heads, rows)


def _estimators(cases: dict[str, Any]) -> str:
    rows = [[n, *(_ratio(c, e) for e in c["ratio"])] for n, c in cases.items()]
    names = next((list(c["ratio"]) for c in cases.values()), [])
    return section("Estimators and objectives, time to reparam's", ["", *names], rows)


VARIANTS = {
    "adam": "Adam",
    "moments": "SOAP's moments at one step of five",
    "ynnpack": "products by YNNPACK",
    "threads": "all threads of BLAS",
    "all draws": "gradients through all draws",
    "at once": "all draws weighed at once",
}
"""What the recipe `fast` is compared with."""


def _recipe(cases: dict[str, Any], version: str) -> str:
    variants = [of for of in VARIANTS if any(of in c["ratio"] for c in cases.values())]
    rows = [
        [n, number(c["median"]["iwae"]), *(_ratio(c, of) for of in variants)]
        for n, c in cases.items()
    ]
    heads = ["", "iwae, ms/step", *(f"{VARIANTS[of]} / iwae" for of in variants)]
    return section(f"The recipe `fast` of iwae {version}", heads, rows)


def _scaling(cases: dict[str, Any]) -> str:
    rows = [
        [n.removeprefix("scaling, "), number(c["median"]["iwae"]), f"{c['multiple']:.2f}"]
        for n, c in cases.items()
    ]
    return section("Scaling", ["", "iwae, ms/step", "iwae / floor"], rows)


def _precisions(comparison: dict[str, Any]) -> str:
    rows = [
        [
            c["name"],
            f"{c['nll']:.2f} ± {c['nll_se']:.2f}",
            "" if c["difference"] is None else "{:+.2f} ± {:.2f}".format(*c["difference"]),
        ]
        for c in comparison["cells"]
    ]
    first, shared = comparison["cells"][0], comparison["settings"]
    about = PRECISION.format(
        source=PRECISIONS, n=first["n"], draws=first["k"], device=comparison["device"], **shared
    )
    text = section("Precision", ["`--precision`", "NLL, nats", "to float32, paired"], rows)
    return "\n".join([text, about])


PRECISION = """\
The model that training ends in, evaluated in float32 by L_{draws} of {n:,} test images ± standard
error over images: `iwae compare precisions --dataset {dataset} --epochs {epochs} --k {draws}
--limit {n}` (K = {k}, seed {seed}, schedule {schedule}, device {device}; `{source}`). A CPU has
no TF32 and multiplies in float32 there.
"""


def _ratio(case: dict[str, Any], rival: str) -> str:
    if rival not in case["ratio"]:
        return ""
    r = case["ratio"][rival]
    return f"{r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f})"


if __name__ == "__main__":
    write(json.loads(SOURCE.read_text()))
