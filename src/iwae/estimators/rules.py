"""Which combinations mean something: bounds and their settings, estimators, draws and their number.

Every rule stands here once. What it says is an `Objection` with two wordings: one for arguments of
the library, which the numerical core raises (`validate`), and one for fields of a configuration and
flags of the command line (`validate_flags`). Free of JAX, so that reading a configuration stays
light.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from iwae.errors import InputError, nearest


class Objection(NamedTuple):
    """Why something means nothing, as one whole sentence."""

    keyword: str
    """For arguments of functions."""
    flag: str
    """For fields of a configuration, and flags."""


def validate(objections: Iterable[Objection]) -> None:
    """`InputError` for the first objection, in the words of the library."""
    for objection in objections:
        raise InputError(objection.keyword)


def validate_flags(objections: Iterable[Objection]) -> None:
    """`InputError` for the first objection, in the words of the command line."""
    for objection in objections:
        raise InputError(objection.flag)


def _alike(sentence: str) -> Objection:
    return Objection(sentence, sentence)


# --- bounds -----------------------------------------------------------------------------------

SETTINGS: dict[str, str] = {
    "miwae": "m",
    "piwae": "m",
    "ciwae": "beta",
    "vr-iwae": "alpha",
    "jvi": "order",
}
"""The setting that a bound needs beside K, by its name; the others need none."""

MOST_SUBSETS = 20_000
"""Subsets of the draws that a jackknife of order 3 or more may enumerate."""


def check_m(m: int, k: int) -> Iterator[Objection]:
    """M groups of equal size: 1 ≤ M and M divides K (Rainforth et al. 2018)."""
    if m < 1 or k % m:
        yield Objection(
            f"m = {m} was given with K = {k} draws, but MIWAE needs M groups of equal size; "
            f"give an m that divides {k}.",
            f"m = {m} was given with k = {k}, but the draws form m groups of equal size; "
            f"give an m that divides {k}.",
        )


def check_alpha(alpha: float | int) -> Iterator[Objection]:
    """α is finite."""
    if not math.isfinite(alpha):
        yield _alike(f"alpha = {alpha} was given, but α must be finite; give 1 for the ELBO.")


def check_beta(beta: float | int) -> Iterator[Objection]:
    """0 ≤ β ≤ 1."""
    if not 0 <= beta <= 1:
        yield Objection(
            f"beta = {beta} was given, but CIWAE's β is a weight between 0 (IWAE) and 1 (ELBO); "
            f"give one in [0, 1].",
            f"beta = {beta} was given, but β is a weight; give one from 0 to 1.",
        )


def check_order(order: int, k: int) -> Iterator[Objection]:
    """0 ≤ m < K, and not too many subsets of K − j draws for j = 3 … m."""
    if not 0 <= order < k:
        yield Objection(
            f"order = {order} was given with K = {k} draws, but JVI leaves out up to m of them and "
            f"needs one to stay; give an order from 0 to {k - 1}.",
            f"order = {order} was given with k = {k}, but a jackknife leaves out fewer draws than "
            f"there are; give an order from 0 to {k - 1}.",
        )
        return
    subsets = max((math.comb(k, j) for j in range(3, order + 1)), default=0)
    if subsets > MOST_SUBSETS:
        yield _alike(
            f"order = {order} was given with K = {k} draws, which takes up to {subsets:,} subsets "
            f"of them; give an order of at most 2, or fewer draws."
        )


def check_settings(
    objectives: Iterable[str],
    *,
    k: int,
    m: int | None,
    alpha: float | int | None,
    beta: float | int | None,
    order: int | None,
) -> Iterator[Objection]:
    """A configuration's settings are those that its objectives need, in their range at this K."""
    names = list(objectives)
    needed = {SETTINGS[name]: name for name in names if name in SETTINGS}
    given = {"alpha": alpha, "beta": beta, "m": m, "order": order}
    for setting, value in given.items():
        if setting not in needed and value is not None:
            yield _alike(
                f"{setting} = {value} was given, but {' and '.join(names)} takes no {setting}; "
                f"leave it out, or choose another objective."
            )
        if setting in needed and value is None:
            yield missing(needed[setting])
    if m is not None:
        yield from check_m(m, k)
    if alpha is not None:
        yield from check_alpha(alpha)
    if beta is not None:
        yield from check_beta(beta)
    if order is not None:
        yield from check_order(order, k)


def missing(bound: str) -> Objection:
    """The setting that this bound needs was not given."""
    setting = SETTINGS[bound]
    return Objection(
        f"The bound {bound} has a setting {setting}, but none was given; give one.",
        f"objective = {bound} needs {setting}; give --{setting}.",
    )


def check_pair(objective: str, encoder_objective: str | None) -> Iterator[Objection]:
    """Which objectives the encoder may have where it has one of its own."""
    if encoder_objective == "piwae":
        yield _alike(
            "encoder_objective = piwae was given, but piwae is a pair itself; give "
            "--encoder-objective miwae."
        )
    if objective == "piwae" and encoder_objective is not None:
        yield _alike(
            f"encoder_objective = {encoder_objective} was given with objective = piwae, whose "
            f"encoder follows miwae; leave it out, or give --objective iwae."
        )


# --- estimators -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What an estimator asks of bounds, draws and their number."""

    name: str = "of your own"
    """As it stands in a message."""
    independent: bool = False
    """It holds for independent draws only."""
    any_density: bool = False
    """It holds even where the density in the weights is not that of the draws."""
    own_phi: bool = False
    """φ follows a divergence of its own and not the bound."""
    least_k: int = 1
    """Draws below which φ would not learn."""
    sleep: bool = False
    """φ ascends log q(h|x) of draws (x, h) from the model (the sleep phase), not of the data."""


EstimatorName = Literal[
    "reparam", "stl", "dreg", "rws", "rws-sleep", "rws-dreg", "aisle-kl", "aisle-chi2"
]

RULES: dict[EstimatorName, Rules] = {
    "reparam": Rules(name="reparam", any_density=True),
    "stl": Rules(name="stl"),
    "dreg": Rules(name="dreg", independent=True),
    "rws": Rules(name="rws", own_phi=True, least_k=2),
    "rws-sleep": Rules(name="rws-sleep", own_phi=True, sleep=True),
    "rws-dreg": Rules(name="rws-dreg", independent=True, own_phi=True, least_k=2),
    "aisle-kl": Rules(name="aisle-kl", own_phi=True),
    "aisle-chi2": Rules(name="aisle-chi2", own_phi=True),
}
"""The estimators by the name that `--estimator` takes; their coefficients are in
`iwae.estimators.estimators`."""

PLAIN: EstimatorName = "reparam"
"""The one that differentiates the log-weights themselves, so that it suits any draws."""

REFERENCE: EstimatorName = "dreg"
"""Unbiased for every smooth bound of independent draws."""


def rules_of(name: str) -> Rules:
    """The rules of the estimator of this name; `InputError` if there is none."""
    for known, rules in RULES.items():
        if known == name:
            return rules
    raise InputError(f"There is no estimator {name!r}; {nearest(name, [*RULES])}.")


@dataclass(frozen=True)
class Capabilities:
    """What the draws of a model allow."""

    independent: bool = True
    """Whether the K draws of an example are independent of one another."""
    own_density: bool = True
    """Whether the density in the weights is that of the draws."""
    in_blocks: bool = False
    """Whether draws are weighed together in blocks, with variables beside h."""
    joint: bool = True
    """Whether draws (x, h) ~ p(x, h) can be made."""


PROPOSALS: dict[str, Capabilities] = {
    "independent": Capabilities(),
    "hierarchical": Capabilities(independent=False, in_blocks=True),
    "hierarchical-independent": Capabilities(in_blocks=True),
}
"""By the name that `--proposal` takes, with uniform weights of the heads."""


def capabilities(proposal: str, weights: str) -> Capabilities:
    """Of a configuration's proposal, and the weights of its heads."""
    of = PROPOSALS[proposal]
    return Capabilities(of.independent, weights == "uniform", of.in_blocks, of.joint)


def check_bounds(rules: Rules, *, k: int, two: bool, draws: Capabilities) -> Iterator[Objection]:
    """The estimator means something for K draws of one bound, or of `two` for θ and φ."""
    if draws.in_blocks and two:
        yield _alike(
            "A bound of its own was given for φ, but the draws of a hierarchical proposal are "
            "weighed together, by those of one bound; give one bound for θ and φ."
        )
    if rules.own_phi and two:
        yield Objection(
            f"Estimator {rules.name} updates φ by a divergence of its own, so a bound of its own "
            f"for φ would never be used; give reparam, stl or dreg, or one bound for θ and φ.",
            f"estimator = {rules.name} was given with an objective for the encoder, but it "
            f"updates the encoder by a divergence of its own; give --estimator reparam, stl or "
            f"dreg, or one objective for both.",
        )
    if k < rules.least_k:
        yield Objection(
            f"Estimator {rules.name} was given K = {k} draw, where its φ gradient has mean zero; "
            f"give K = {rules.least_k} or more, or use dreg.",
            f"estimator = {rules.name} was given with k = {k}, where the encoder's gradient has "
            f"mean zero; give --k {rules.least_k} or more, or --estimator dreg.",
        )


def check_backward(
    backward_draws: int | None, *, two: bool, draws: Capabilities
) -> Iterator[Objection]:
    """The gradient may pass through so many of the K draws, resampled by their weights."""
    if backward_draws is None:
        return
    if backward_draws < 1:
        yield _alike(
            f"backward_draws = {backward_draws} was given, but a gradient passes through at least "
            f"1 draw; give 1 or more."
        )
    if two:
        yield Objection(
            "backward_draws was given with a bound of its own for φ, but draws are resampled by "
            "the weights of one bound; leave it out, or give one bound for θ and φ.",
            f"backward_draws = {backward_draws} was given with an objective for the encoder, but "
            f"draws are resampled by the weights of one objective; leave it out.",
        )
    if draws.in_blocks:
        yield _alike(
            "backward_draws was given, but this model's draws come in blocks that are weighed "
            "together; leave it out."
        )


def check_chunk(chunk: int | None) -> Iterator[Objection]:
    """So many draws are weighed at a time."""
    if chunk is not None and chunk < 1:
        yield _alike(
            f"chunk = {chunk} was given, but at least 1 draw is weighed at a time; give 1 or more."
        )


def check_draws_of(rules: Rules, draws: Capabilities) -> Iterator[Objection]:
    """The estimator means something for such draws."""
    if rules.independent and not draws.independent:
        yield _alike(
            f"Estimator {rules.name} needs independent draws, but this model's proposal makes "
            f"dependent ones; give reparam or stl."
        )
    if not rules.any_density and not draws.own_density:
        yield _alike(
            f"Estimator {rules.name} drops the score of the density in the weights, but this "
            f"model's draws have another; give reparam, or uniform weights of the heads."
        )
    if (rules.own_phi or rules.sleep) and draws.in_blocks:
        yield _alike(
            f"Estimator {rules.name} updates φ by a divergence of p(h|x) and q(h|x), which a "
            f"hierarchical proposal does not have; give reparam."
        )
    if rules.sleep and not draws.joint:
        yield _alike(
            f"Estimator {rules.name} needs draws (x, h) from the model, but it has no method "
            f"sample_joint(n, key); write one, or use rws."
        )


def check(
    rules: Rules, *, k: int, two: bool, draws: Capabilities, backward_draws: int | None = None
) -> Iterator[Objection]:
    """All that is to be asked of an estimator with K draws of a model, under one bound or `two`."""
    yield from check_bounds(rules, k=k, two=two, draws=draws)
    yield from check_backward(backward_draws, two=two, draws=draws)
    yield from check_draws_of(rules, draws)


def estimators_for(draws: Capabilities) -> tuple[EstimatorName, ...]:
    """The estimators that mean something for such draws."""
    return tuple(name for name, rules in RULES.items() if not any(check_draws_of(rules, draws)))


def reference_for(draws: Capabilities) -> EstimatorName:
    """An estimator that is unbiased for every smooth bound of such draws."""
    return REFERENCE if draws.independent and draws.own_density else PLAIN
