"""Where the time of a training step goes, instruction by instruction, as XLA's tracer tells it."""

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import jax

from benchmarks.iwae_steps import TrainingLoop

PARTS = {
    "products": "matrix products",
    "images": "gathering and binarising images",
    "draws": "drawing ε",
    "adam": "Adam",
    "copies": "copies and transpositions",
    "elementwise": "bound, likelihood, tanh and their gradients",
    "waiting": "dispatch, and both cores waiting",
}
"""Parts of a step, and what is in them."""

CONTAINERS = ("while", "conditional", "call", "tuple")
"""Instructions whose time is that of others."""


def parts(loop: TrainingLoop, steps: int) -> dict[str, float]:
    """Milliseconds of a step by part; where several instructions run at once, they share the time.

    They add up to the time of a traced step, which is longer than that of one left alone.
    """
    kinds = _kinds(loop.compiled_text())
    profile = _traced(loop, steps)
    spans = [
        (event.start_ns, event.end_ns, kinds[event.name])
        for plane in profile.planes
        for line in plane.lines
        for event in line.events
        if event.name in kinds
    ]
    shares = _shared(spans)
    return {part: shares[part] / steps / 1e6 for part in PARTS}


def kernels(loop: TrainingLoop, steps: int) -> dict[str, tuple[float, float]]:
    """By name, how often a kernel of a GPU runs in a step, and for how many milliseconds in all.

    Of a program without command buffers, whose kernels are launched one by one.
    """
    found: dict[str, tuple[float, float]] = {}
    seen: list[str] = []
    for plane in _traced(loop, steps).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            seen.append(line.name)
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                n, ms = found.get(event.name, (0.0, 0.0))
                found[event.name] = n + 1 / steps, ms + event.duration_ns / 1e6 / steps
    if not found and jax.default_backend() != "cpu":
        raise RuntimeError(f"The trace holds no kernels; its lines are {seen}.")
    return found


PRODUCTS = ("gemm", "nvjet", "cutlass", "cublas", "xmma", "splitk", "gemv")
"""What is in the names of the kernels of matrix products."""


def is_product(kernel: str) -> bool:
    """Whether a kernel of this name computes a matrix product."""
    return any(part in kernel.lower() for part in PRODUCTS)


def _traced(loop: TrainingLoop, steps: int) -> jax.profiler.ProfileData:
    """The profile of so many steps, after as many to warm up."""
    loop(steps)
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            loop(steps)
        (file,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file))


def _shared(spans: list[tuple[float, float, str]]) -> Mapping[str, float]:
    """Nanoseconds by kind, from the first start to the last end; nothing running is "waiting"."""
    edges = sorted([(a, 1, kind) for a, _, kind in spans] + [(b, -1, kind) for _, b, kind in spans])
    running: Counter[str] = Counter()
    shares: dict[str, float] = defaultdict(float)
    before = edges[0][0]
    for now, change, kind in edges:
        at_once = running.total()
        for other, n in running.items() if at_once else [("waiting", 1)]:
            shares[other] += (now - before) * n / max(at_once, 1)
        running[kind] += change
        before = now
    return shares


def _kinds(program: str) -> dict[str, str]:
    """The part that each instruction of a compiled program belongs to."""
    with_products = {
        name
        for name, body in re.findall(r"\n%(\S+) \([^\n]*\{\n(.*?)\n\}", program, re.DOTALL)
        if " dot(" in body
    }
    kinds = {}
    for name, opcode, rest in re.findall(r"%(\S+) = \S+ ([\w-]+)\((.*)", program):
        if opcode in CONTAINERS:
            continue
        called = re.search(r"calls=%([\w.-]+)", rest)
        scope = re.search(r'op_name="([^"]*)"', rest)
        product = opcode == "dot" or (called is not None and called[1] in with_products)
        kinds[name] = "products" if product else _kind(name, opcode, scope[1] if scope else "")
    return kinds


def _kind(name: str, opcode: str, scope: str) -> str:
    if opcode in ("copy", "transpose") or name.startswith("copy"):
        return "copies"
    for part, words in (("images", ("images",)), ("adam", ("optimizer",)), ("draws", ("_normal",))):
        if any(word in scope for word in words):
            return part
    return "elementwise"
