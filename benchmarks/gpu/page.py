"""The part of docs/performance.md that tells of a GPU, from its record."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu import record
from benchmarks.gpu.items import FULL
from benchmarks.gpu.record import Record
from benchmarks.gpu.steps import (
    CELLS,
    FAST,
    LARGE,
    OPTIONS,
    PRECISIONS,
    PRODUCTS,
    REST,
    step_name,
    table_objectives,
)
from benchmarks.markdown import number, section

RECORDS = Path("results/gpu")

STEPS = 3280 * (59_600 // 20)
"""Of the paper's protocol on MNIST."""

HEAD = """\
# On a GPU: {card}

`python -m benchmarks.gpu` measured this ([gpu.md](gpu.md)); `{source}` is its record, and this
section is written from it. {machine}. Medians over {turns} turns, with their range;
contestants in processes of their own, one after the other, on a card that nobody else used.
{left}"""


def sections(folder: Path = RECORDS) -> list[str]:
    """One for each record."""
    return [rendered(record.read(path), path) for path in sorted(folder.glob("*.json"))]


def rendered(content: Record, source: Path) -> str:
    """The Markdown of one record; what was not measured is not in it."""
    machine = content.of("device").get("machine", {})
    names = ("platform", "python", "jax", "torch", "iwae")
    unfinished = [f"{w.item} ({w.why or w.state})" for w in content.work if w.state != "done"]
    head = HEAD.format(
        card=machine.get("card", "").partition(",")[0] or "unknown card",
        source=source,
        machine=", ".join(f"{n} {machine[n]}" for n in names if n in machine),
        turns=FULL.turns,
        left=f"Not measured to the end: {'; '.join(unfinished)}.\n" if unfinished else "",
    )
    parts = [
        head,
        _checks(content),
        _steps(content),
        _options(content),
        _waits(content),
        _together(content),
        _evaluation(content),
        _papers(content),
    ]
    return "\n".join(part for part in parts if part)


def _ms(figure: Mapping[str, Any] | None) -> list[float]:
    return [] if figure is None else figure.get("ms", [])


def _range(values: list[float]) -> str:
    return (
        f"{number(median(values))} ({number(min(values))}–{number(max(values))})" if values else ""
    )


def _times(values: list[float], ours: list[float]) -> str:
    return number(median(values) / median(ours)) if values and ours else ""


def _hours(ms: list[float]) -> str:
    return number(STEPS * median(ms) / 3.6e6) if ms else ""


def _checks(content: Record) -> str:
    found = content.of("checks")
    exact = content.of("device").get("relative error of products", {})
    if not found:
        return ""
    rows = [[n, f"{v['deviation']:.1e}", f"{v['allowed']:.1e}"] for n, v in found.items()]
    text = section("Right on this card", ["", "largest deviation", "allowed"], rows)
    errors = ", ".join(f"{name} {error:.1e}" for name, error in exact.items())
    return f"{text}\nRelative error of matrix products: {errors}.\n"


def _steps(content: Record) -> str:
    ours, theirs = content.of("steps"), content.of("torch steps")
    names = [step_name(layers, k) for layers in (1, 2) for k in FULL.ks]
    names += [f"{step_name(1, k)}, {p}" for p in PRECISIONS for k in (min(FULL.ks), max(FULL.ks))]
    rows = []
    for name in (*names, FAST, LARGE):
        ms = _ms(ours.get(name))
        plain, graph = (_ms(theirs.get(f"{name}: {how}")) for how in ("plain", "CUDA graph"))
        if ms:
            hours = "" if name in (FAST, LARGE) else _hours(ms)
            rows.append([name, _range(ms), _times(plain, ms), _times(graph, ms), hours])
    heads = ["batch 20 unless said", "iwae, ms/step", "torch / iwae", "torch CUDA graph / iwae"]
    text = section("Training step on the GPU", [*heads, "hours of 3,280 passes"], rows)
    return f"{text}\n{PROJECTED}" if rows else ""


PROJECTED = f"""\
The last column is the paper's whole protocol on MNIST, {STEPS:,} steps, by this step alone.
*torch* is the plain loop with fused Adam, *CUDA graph* the same step captured once and replayed.
"""


def _options(content: Record) -> str:
    found = content.of("command buffers")
    rows = []
    for how in OPTIONS:
        each = [_ms(found.get(f"{step_name(1, k)}: {how}")) for k in FULL.tuned]
        if any(each):
            given = ", ".join(f"`{n}={v}`" for n, v in OPTIONS[how].items())
            rows.append([how, *(_range(ms) for ms in each), given])
    heads = ["", *(f"{step_name(1, k)}, ms" for k in FULL.tuned), "options of XLA's compiler"]
    return section("Command buffers", heads, rows)


def _waits(content: Record) -> str:
    ours, found = content.of("steps"), content.of("anatomy")
    least = [found[name] for name in (PRODUCTS, REST) if name in found]
    rows = []
    for name, figure in found.items():
        if "launched" not in figure:
            continue
        others = figure["kernels_ms"] - figure["products_ms"]
        parts = [figure["products_ms"], others, figure["kernels_ms"]]
        floor = sum(of[name] for of in least) if least else None
        row = [name, f"{figure['launched']:.0f}", *map(number, parts)]
        rows.append([*row, _range(_ms(ours.get(name))), number(floor)])
    heads = ["", "kernels", "products, ms", "other kernels, ms", "all kernels, ms", "step, ms"]
    text = section("What a step waits for", [*heads, "floor, ms"], rows)
    launches = {n: v for n, v in found.get("launches", {}).items() if v is not None}
    remark = ", ".join(f"{n} {v:.2g} µs" for n, v in launches.items())
    of = "products, memory and random numbers" if len(least) == 2 else "products alone"
    return f"{text}\n{WAITS.format(launches=remark, of=of)}" if rows else ""


WAITS = """\
Kernels are traced one by one, without command buffers, where each takes a little longer than in a
step of the default program; so their sum can exceed the step's time. The floor is of {of}, by the
rates that large arrays reach on this card. At least, here: {launches}.
"""


def _together(content: Record) -> str:
    found, alone = content.of("chunks"), content.of("steps")
    known = {name: median(ms) for name, figure in (found | alone).items() if (ms := _ms(figure))}
    rows = []
    for name, figure in found.items():
        if ms := _ms(figure):
            parts = _parts(name, figure.get("replicas", 1))
            apart = sum(known[p] for p in parts) if parts and known.keys() >= set(parts) else None
            rows.append([name, _range(ms), number(apart and apart / median(ms))])
    heads = ["", "ms", "one by one / together"]
    return section("Steps in a call, replicas and cells in one program", heads, rows)


def _parts(name: str, replicas: int) -> list[str]:
    """Names of the steps that are taken together in the one of this name; of none for one alone."""
    if name == CELLS:
        each = [(step_name(1, o.k), o) for o in table_objectives(FULL)]
        return [f"{n}, vae" if o.objective == "vae" and o.k > 1 else n for n, o in each]
    return [name.rpartition(", ")[0]] * replicas if replicas > 1 else []


def _evaluation(content: Record) -> str:
    ours = content.of("evaluation").get("iwae")
    if ours is None:
        return ""
    theirs = {n: v["s"] for n, v in content.of("torch evaluation").items()}
    rows = [["iwae", _range(ours["s"]), ""]]
    rows += [[f"torch, {n}", _range(s), _times(s, ours["s"])] for n, s in theirs.items()]
    title = f"L_{FULL.k_evaluation} of {ours['n']:,} images"
    return section(title, ["", "s", "/ iwae"], rows)


def _papers(content: Record) -> str:
    rows = []
    for name, figure in content.of("papers").items():
        if figure.get("passes") is not None:
            rows.append([name, f"{figure['passes']:,} of 3,280 passes", number(figure["seconds"])])
        elif "nll" in figure:
            error = figure["nll_se"]
            nll = f"{figure['nll']:.2f} ± {error:.2f}"
            rows.append([name, f"−log p(x) {nll}", number(figure["training_seconds"])])
    return section("Table 1 by the paper's protocol", ["cell", "", "training, s"], rows)
