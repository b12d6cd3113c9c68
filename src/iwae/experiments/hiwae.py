"""The gain of dependent draws: three proposals at equal K and budget (H-IWAE).

The experiment compares independent draws (IWAE), heads with one z_0 each, and heads with a shared
z_0, on densities in the plane, where the evidence is 1, and in trained autoencoders.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from iwae import data, runs
from iwae._utils import threefry
from iwae._utils.distributed import computing
from iwae._utils.files import write_atomic
from iwae._utils.formatting import Figure
from iwae.bounds import iwae
from iwae.config.io import flatten, override
from iwae.config.schema import RunConfig
from iwae.errors import InputError
from iwae.evaluation.examples import mean_and_error, over_examples
from iwae.evaluation.likelihood import repetitions
from iwae.evaluation.trained import Evaluation, TrainedModel
from iwae.experiments import toy_densities
from iwae.experiments.comparisons import CellCallbacks, finished, known, versions
from iwae.experiments.toy_densities import NO_DATA, TARGETS, GaussianProposal, OnTarget
from iwae.models.autoencoder import Model, draw, draw_log_weights
from iwae.models.hierarchical import Heuristic, hierarchical
from iwae.plotting import figures
from iwae.plotting.figures import Panel
from iwae.training.callbacks import Callback, EpochEnd, StepChunk, TrainerState

SOURCE = "Huang et al. 2019"

KINDS = {
    "IWAE": "independent",
    "own z_0": "hierarchical-independent",
    "shared z_0": "hierarchical",
}
"""The compared proposals, by name."""

KS = (2, 5, 10, 20)
DATASETS = ("mixture", "mnist")

STEPS, RATE, BATCH, UNITS = 8000, 1e-2, 64, 32
"""For a density in the plane: steps of Adam, initial rate of the cosine schedule, estimates per
step, and hidden units."""

ESTIMATES, BLOCKS = 20_000, 100
"""Number of estimates p̂ for a density in the plane, and for each image."""

DRAWN, POINTS = 5, 4000
"""Largest K with a figure, and points per panel."""


class Spread(NamedTuple):
    """The variation of an estimate p̂ = (1/K) Σ w_i of an evidence of 1."""

    bound: Float[np.ndarray, "..."]
    """E[log p̂], in nats."""
    covariance: Float[np.ndarray, "..."]
    """Cov(w_i, w_j), mean over i ≠ j."""
    variance: Float[np.ndarray, "..."]
    """Var(p̂) = (1/K²) (Σ_i Var(w_i) + Σ_{i≠j} Cov(w_i, w_j))."""
    log_variance: Float[np.ndarray, "..."]
    """Var(log p̂), which rare large weights hardly affect."""


def spread(log_w: Float[np.ndarray, "... n k"]) -> Spread:
    """The `Spread` of n estimates, from their log-weights with K ≥ 2 draws each."""
    log_w = np.asarray(log_w, np.float64)
    n, k = log_w.shape[-2:]
    w = np.exp(log_w)
    estimates = w.mean(axis=-1)
    apart = w - w.mean(axis=-2, keepdims=True)
    products = apart.sum(axis=-1) ** 2 - (apart**2).sum(axis=-1)
    return Spread(
        bound=np.log(estimates).mean(axis=-1),
        covariance=products.sum(axis=-1) / (k * (k - 1) * (n - 1)),
        variance=estimates.var(axis=-1, ddof=1),
        log_variance=np.log(estimates).var(axis=-1, ddof=1),
    )


Index = int | slice | np.ndarray
"""An index into an axis of an array."""


@dataclass(frozen=True)
class Row:
    """A proposal at one K; bounds and NLL in nats, moments of weights relative to p(x).

    Figures are means over seeds with their standard errors, nan for a single seed.
    """

    dataset: str
    k: int
    name: str
    bound: Figure
    nll: Figure | None
    """None where the evidence is known."""
    covariance: Figure
    variance: Figure
    log_variance: Figure
    seconds: list[float]
    """Training time by seed; for a density, time to learn and measure all seeds together."""


@computing()
def run(
    config: RunConfig,
    out: Path,
    *,
    seeds: Sequence[int],
    k: int,
    callbacks: CellCallbacks,
    datasets: Sequence[str] = (),
    ks: Sequence[int] = KS,
    limit: int | None = None,
    data_dir: str | Path | None = None,
) -> tuple[list[Row], list[Path]]:
    """Every proposal for every K on every data set or density, and figures of densities at small K.

    NLL is −L_k. Finished runs in `out` are reused and interrupted ones resumed; proposals for
    densities take seconds and are learned again.
    """
    if config.model.proposal != "hierarchical":
        raise InputError(
            f"proposal = {config.model.proposal} was given, but all proposals are compared; leave "
            f"it out."
        )
    if min(ks) < 2:
        raise InputError(
            f"K = {min(ks)} was given, but dependent draws need K = 2 or more; give 2 or more."
        )
    for dataset in set(datasets or DATASETS) - TARGETS.keys():
        how = {n: getattr(config.data, n) for n in ("values", "header", "schema")}
        data.load(dataset, data_dir=data_dir, **how)  # so that errors in the data come first
    trainings = Trainings(config, out, seeds, callbacks, data_dir)
    rows: list[Row] = []
    pictures: list[Path] = []
    for dataset in datasets or DATASETS:
        for draws in ks:
            if dataset in TARGETS:
                some, found = _in_the_plane(dataset, draws, config, seeds, callbacks)
                if draws <= DRAWN:
                    pictures.append(out / dataset / f"k-{draws}.png")
                    pictures[-1].parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(pictures[-1], picture(dataset, found, draws, seeds[0]))
            else:
                some = [_of_models(trainings, dataset, draws, n, k, limit) for n in KINDS]
            rows += some
    return rows, pictures


@dataclass(frozen=True)
class Trainings:
    """How autoencoders are trained, and in which directory."""

    config: RunConfig
    out: Path
    seeds: Sequence[int]
    callbacks: CellCallbacks
    data_dir: str | Path | None

    def of(self, dataset: str, k: int, name: str) -> list[TrainedModel]:
        """The models of a proposal at one K, trained with every seed."""
        proposal, trained = KINDS[name], list[TrainedModel]()
        weights = "uniform" if proposal == "independent" else self.config.model.proposal_weights
        own = {"proposal": proposal, "proposal_weights": weights, "k": k}
        for seed in self.seeds:
            settings = override(self.config, dataset=dataset, seed=seed, **own)
            about = f"{dataset}, K = {k}, {name}, seed {seed}"
            callback = self.callbacks.cell(about, self.config.training.epochs)
            place = self.out / Path(dataset).stem / f"k-{k}" / proposal / f"seed-{seed}"
            trained.append(finished(place, settings, callback, self.data_dir))
        return trained


def _in_the_plane(
    dataset: str, k: int, config: RunConfig, seeds: Sequence[int], callbacks: CellCallbacks
) -> tuple[list[Row], dict[str, OnTarget]]:
    """Rows and models of every proposal at one K on a density."""
    rows: list[Row] = []
    found: dict[str, OnTarget] = {}
    heuristic = config.model.proposal_weights
    for name in KINDS:
        callback = callbacks.cell(f"{dataset}, K = {k}, {name}", 1)
        row, found[name] = _on_target(dataset, k, name, heuristic, seeds, callback)
        rows.append(row)
    return rows, found


def count(datasets: Sequence[str], seeds: Sequence[int], ks: Sequence[int] = KS) -> int:
    """The number of trainings in `run`."""
    each = [1 if dataset in TARGETS else len(seeds) for dataset in datasets or DATASETS]
    return sum(each) * len(ks) * len(KINDS)


def start(name: str, k: int, heuristic: Heuristic, key: PRNGKeyArray) -> PyTree:
    """The initial proposal in the plane: N(0, I), or K heads on a z_0 of two units."""
    if name == "IWAE":
        return GaussianProposal(jnp.zeros(2, jnp.float32), jnp.zeros(2, jnp.float32))
    return hierarchical(
        eqx.nn.Identity(),
        len(NO_DATA),
        2,
        n_0=2,
        width=UNITS,
        block=k,
        shared=name == "shared z_0",
        heuristic=heuristic,
        key=key,
    )


@computing()
def learn(
    model: OnTarget, key: PRNGKeyArray, *, k: int, steps: int, callback: Callback | None = None
) -> OnTarget:
    """The model after `steps` steps of Adam on the mean of L_k over a batch of estimates.

    `model` may hold several models along a leading axis, one for each key.
    """
    params, static = eqx.partition(model, eqx.is_inexact_array)
    adam = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(params: PyTree, key: PRNGKeyArray) -> Float[Array, ""]:
        model = eqx.combine(params, static)
        bound = lambda key: iwae(draw_log_weights(model, NO_DATA, k, key))
        return -jnp.mean(jax.vmap(bound)(jax.random.split(key, BATCH)))

    def step(state: PyTree, key: PRNGKeyArray) -> tuple[PyTree, Array]:
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, opt_state = adam.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), -value

    def some(state: PyTree, key: PRNGKeyArray, at: Array) -> tuple[PyTree, Array]:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(at)
        state, bounds = jax.lax.scan(step, state, keys)
        return state, jnp.mean(bounds)

    begin, advance = adam.init, some
    if key.ndim:
        begin, advance = jax.vmap(begin), jax.vmap(advance, (0, 0, None))
    advance = jax.jit(advance)
    state = (params, begin(params))
    began = time.monotonic()
    for at in np.array_split(np.arange(steps), min(8, steps)):
        state, bound = advance(state, key, jnp.asarray(at))
        if callback is not None:
            done, value = int(at[-1]) + 1, float(jnp.mean(bound))
            seconds = time.monotonic() - began
            at_step = TrainerState(done // steps, 1, done, steps, seconds, position=done / steps)
            callback.on_step_chunk(StepChunk(at_step, value, done * BATCH * key.size / seconds))
    if callback is not None:
        callback.on_epoch_end(EpochEnd(at_step, RATE, value, None))
    return eqx.combine(state[0], static)


def _on_target(
    dataset: str, k: int, name: str, heuristic: Heuristic, seeds: Sequence[int], callback: Callback
) -> tuple[Row, OnTarget]:
    """The row of a proposal, learned with all seeds together, and the model of the first seed."""
    began = time.monotonic()
    keys = jnp.stack([threefry.key(seed) for seed in seeds])
    key_start, key_learn, key_measure = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T

    def model_of(key: PRNGKeyArray) -> OnTarget:
        return OnTarget(start(name, k, heuristic, key), TARGETS[dataset])

    def measured(model: OnTarget, key: PRNGKeyArray) -> Float[Array, "n k"]:
        each = lambda key: draw_log_weights(model, NO_DATA, k, key)
        return jax.lax.map(each, jax.random.split(key, ESTIMATES), batch_size=1000)

    models = eqx.filter_vmap(model_of)(key_start)
    models = learn(models, key_learn, k=k, steps=STEPS, callback=callback)
    log_w = eqx.filter_jit(eqx.filter_vmap(measured))(models, key_measure)
    found = spread(np.asarray(log_w))
    row = Row(
        dataset=dataset,
        k=k,
        name=name,
        nll=None,
        seconds=[time.monotonic() - began],
        **{of: mean_and_error(values) for of, values in found._asdict().items()},
    )
    return row, jax.tree.map(lambda a: a[0] if eqx.is_array(a) else a, models)


def _of_models(
    trainings: Trainings, dataset: str, draws: int, name: str, k: int, limit: int | None
) -> Row:
    """The row of an autoencoder: bound, NLL and moments of weights, over seeds."""
    trained = trainings.of(dataset, draws, name)
    evaluations = [runs.evaluate(one, k=k, limit=limit) for one in trained]
    pairs = zip(trained, evaluations, strict=True)
    found = [weights_of(one, draws, e) for one, e in pairs]
    over_seeds = {
        of: mean_and_error(np.array([getattr(one, of).mean() for one in found]))
        for of in Spread._fields
    }
    bounds = [one.bound.mean() - e.nll for e, one in zip(evaluations, found, strict=True)]
    return Row(
        dataset=dataset,
        k=draws,
        name=name,
        nll=mean_and_error(np.array([e.nll for e in evaluations])),
        seconds=[runs.training_seconds(one) for one in trained],
        **over_seeds | {"bound": mean_and_error(np.array(bounds))},
    )


def weights_of(trained: TrainedModel, k: int, evaluation: Evaluation) -> Spread:
    """The `Spread` of estimates by K draws on the evaluated images, relative to their p(x)."""
    log_w = over_examples(
        eqx.Partial(_estimates, k=k, n=BLOCKS),
        trained.model,
        trained.data().split(evaluation.split)[: evaluation.n],
        trained.seen.observer,
        seed=evaluation.seed,
        draws=k * BLOCKS,
    )
    return spread(log_w - evaluation.log_likelihoods[:, None, None])


def _estimates(
    model: Model, x: Float[Array, " d"], key: PRNGKeyArray, *, k: int, n: int
) -> Float[Array, "n k"]:
    one = lambda key: draw_log_weights(model, x, k, key)
    return jax.lax.map(one, repetitions(key, n))


@computing()
def picture(dataset: str, models: Mapping[str, OnTarget], k: int, seed: int) -> bytes:
    """A PNG with one row per proposal: the density, draws of each head, and draws kept by weight.

    The colour shows the direction of z_0, so draws with a shared z_0 have the same colour.
    """
    key_exact, *keys = jax.random.split(threefry.key(seed), 1 + len(models))
    exact = Panel(dataset, np.asarray(toy_densities.draw(dataset, POINTS, key_exact)))
    rows: list[list[Panel]] = []
    for (name, model), key in zip(models.items(), keys, strict=True):
        h, log_w = jax.tree.map(np.asarray, _draws(model, k, jax.random.split(key, POINTS)))
        if isinstance(model.proposal, GaussianProposal):
            z, hue = h, None
        else:
            (z,), z0 = h.latents, h.z0
            hue = np.arctan2(z0[..., 1], z0[..., 0]) / (2 * np.pi)
        noise = np.random.default_rng(seed).gumbel(size=log_w.shape)
        shown: dict[str, tuple[Index, Index]] = {}
        shown |= {f"{name}: draw {j + 1}": (slice(None), j) for j in range(k)}
        shown["kept by weight"] = np.arange(POINTS), np.argmax(log_w + noise, axis=1)
        of = lambda at, hue=hue: None if hue is None else hue[at]
        rows.append([exact, *(Panel(title, z[at], of(at)) for title, at in shown.items())])
    return figures.scatter_picture(rows)


@eqx.filter_jit
def _draws(model: OnTarget, k: int, keys: PRNGKeyArray) -> tuple[PyTree, Array]:
    """(h, log w) of K draws for each key."""

    def one(key: PRNGKeyArray) -> tuple[PyTree, Array]:
        h, log_q = draw(model, NO_DATA, k, key)
        return h, model.log_joint(NO_DATA, h) - log_q

    return jax.vmap(one)(keys)


def record(config: RunConfig, rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, object]:
    """The rows with everything needed to reproduce them."""
    own = {"dataset", "seed", "k", "proposal"}
    settings = {n: v for n, v in flatten(config).items() if v is not None and n not in own}
    plane = {"steps": STEPS, "rate": RATE, "batch": BATCH, "units": UNITS, "estimates": ESTIMATES}
    return {
        **versions(),
        "experiment": "hiwae",
        "source": SOURCE,
        "settings": settings,
        "seeds": list(seeds),
        "in_the_plane": plane,
        "rows": [{n: _for_json(v) for n, v in asdict(row).items()} for row in rows],
    }


def _for_json(value: object) -> object:
    return known(value) if isinstance(value, tuple) else value
