"""Valid combinations of bounds with their settings, estimators, draws and K.

Every rule is stated here once. A violation is an `Objection` with two messages: one for arguments
of the library, which the numerical core raises (`validate`), and one for fields of a configuration
and flags of the command line (`validate_flags`). This module does not import JAX, so that reading a
configuration is fast.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from iwae.errors import InputError, nearest


class Objection(NamedTuple):
    """The message about an invalid combination."""

    keyword: str
    """For arguments of functions."""
    flag: str
    """For fields of a configuration, and flags."""


def validate(objections: Iterable[Objection]) -> None:
    """`InputError` for the first objection, with the message for arguments."""
    for objection in objections:
        raise InputError(objection.keyword)


def validate_flags(objections: Iterable[Objection]) -> None:
    """`InputError` for the first objection, with the message for flags."""
    for objection in objections:
        raise InputError(objection.flag)


def _same(message: str) -> Objection:
    return Objection(message, message)


# --- bounds -----------------------------------------------------------------------------------

SETTINGS: dict[str, str] = {
    "miwae": "m",
    "piwae": "m",
    "ciwae": "beta",
    "vr-iwae": "alpha",
    "jvi": "order",
}
"""The setting that a bound needs beside K, by the bound's name; other bounds need none."""

MOST_SUBSETS = 20_000
"""Maximal number of subsets that a jackknife of order 3 or more may enumerate."""


def check_m(m: int, k: int) -> Iterator[Objection]:
    """M groups of equal size need M ≥ 1 that divides K (Rainforth et al. 2018)."""
    if m < 1 or k % m:
        yield Objection(
            f"m = {m} was given with K = {k} draws, but MIWAE needs M groups of equal size; "
            f"give an m that divides {k}.",
            f"m = {m} was given with k = {k}, but the draws form m groups of equal size; "
            f"give an m that divides {k}.",
        )


def check_alpha(alpha: float | int) -> Iterator[Objection]:
    """α must be finite."""
    if not math.isfinite(alpha):
        yield _same(f"alpha = {alpha} was given, but α must be finite; give 1 for the ELBO.")


def check_weight_alpha(alpha: float | int) -> Iterator[Objection]:
    """The α of black-box α must be finite."""
    if not math.isfinite(alpha):
        yield Objection(
            f"alpha = {alpha} was given, but the α of black-box α must be finite; give 0 for "
            f"variational inference.",
            f"weight_alpha = {alpha} was given, but α must be finite; give 0 for variational "
            f"inference.",
        )


def check_weight_draws(draws: int, k: int) -> Iterator[Objection]:
    """The draws of the weights must have equal parts of the K importance samples."""
    if draws < 1 or k % draws:
        yield Objection(
            f"groups = {draws} was given with K = {k} log-weights, but each draw of the weights "
            f"has an equal part of them; give a number that divides {k}.",
            f"weight_draws = {draws} was given with k = {k}, but each draw of the weights has an "
            f"equal part of the importance samples; give a number that divides {k}.",
        )


def check_beta(beta: float | int) -> Iterator[Objection]:
    """0 ≤ β ≤ 1 must hold."""
    if not 0 <= beta <= 1:
        yield Objection(
            f"beta = {beta} was given, but CIWAE's β is a weight between 0 (IWAE) and 1 (ELBO); "
            f"give one in [0, 1].",
            f"beta = {beta} was given, but β is a weight; give one from 0 to 1.",
        )


def check_order(order: int, k: int) -> Iterator[Objection]:
    """0 ≤ m < K must hold, without too many subsets of K − j draws for j = 3 … m."""
    if not 0 <= order < k:
        yield Objection(
            f"order = {order} was given with K = {k} draws, but JVI leaves out up to m of them and "
            f"needs at least one; give an order from 0 to {k - 1}.",
            f"order = {order} was given with k = {k}, but a jackknife leaves out fewer draws than "
            f"there are; give an order from 0 to {k - 1}.",
        )
        return
    subsets = max((math.comb(k, j) for j in range(3, order + 1)), default=0)
    if subsets > MOST_SUBSETS:
        yield _same(
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
    """A configuration must have the settings that its objectives need, within their ranges."""
    names = list(objectives)
    needed = {SETTINGS[name]: name for name in names if name in SETTINGS}
    given = {"alpha": alpha, "beta": beta, "m": m, "order": order}
    for setting, value in given.items():
        if setting not in needed and value is not None:
            yield _same(
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


def missing(bound: str, setting: str | None = None) -> Objection:
    """The objection that a setting of a bound, by default its only one, was not given."""
    setting = setting or SETTINGS[bound]
    return Objection(
        f"The bound {bound} has a setting {setting}, but none was given; give one.",
        f"objective = {bound} needs {setting}; give --{setting}.",
    )


def check_pair(objective: str, encoder_objective: str | None) -> Iterator[Objection]:
    """The encoder's own objective must not involve piwae."""
    if encoder_objective == "piwae":
        yield _same(
            "encoder_objective = piwae was given, but piwae is a pair itself; give "
            "--encoder-objective miwae."
        )
    if objective == "piwae" and encoder_objective is not None:
        yield _same(
            f"encoder_objective = {encoder_objective} was given with objective = piwae, whose "
            f"encoder uses miwae; leave it out, or give --objective iwae."
        )


# --- estimators -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What an estimator requires of bounds, draws and K."""

    name: str = "of your own"
    """The name in messages."""
    independent: bool = False
    """Whether it is valid for independent draws only."""
    any_density: bool = False
    """Whether it is valid even if the density in the weights is not that of the draws."""
    own_phi: bool = False
    """Whether φ follows another divergence than the bound."""
    least_k: int = 1
    """The smallest K with which φ learns."""
    sleep: bool = False
    """Whether φ ascends log q(h|x) of draws (x, h) from the model, the sleep phase."""
    takes_kl_weight: bool = False
    """Whether its coefficients are right for another weight of the latent KL than 1."""


EstimatorName = Literal[
    "reparam", "stl", "dreg", "rws", "rws-sleep", "rws-dreg", "aisle-kl", "aisle-chi2"
]

RULES: dict[EstimatorName, Rules] = {
    "reparam": Rules(name="reparam", any_density=True, takes_kl_weight=True),
    "stl": Rules(name="stl", takes_kl_weight=True),
    "dreg": Rules(name="dreg", independent=True, takes_kl_weight=True),
    "rws": Rules(name="rws", own_phi=True, least_k=2),
    "rws-sleep": Rules(name="rws-sleep", own_phi=True, sleep=True),
    "rws-dreg": Rules(name="rws-dreg", independent=True, own_phi=True, least_k=2),
    "aisle-kl": Rules(name="aisle-kl", own_phi=True),
    "aisle-chi2": Rules(name="aisle-chi2", own_phi=True),
}
"""Rules by the names in `--estimator`; coefficients are in `iwae.estimators.estimators`."""

PLAIN: EstimatorName = "reparam"
"""The estimator that differentiates the log-weights themselves, valid for any draws."""

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
    """Properties of the draws of a model."""

    independent: bool = True
    """Whether the K draws of an example are independent of one another."""
    own_density: bool = True
    """Whether the density in the weights is that of the draws."""
    in_blocks: bool = False
    """Whether draws are weighted together in blocks, with variables beside h."""
    joint: bool = True
    """Whether the model can draw (x, h) ~ p(x, h)."""
    by_place: bool = False
    """Whether draws are made and weighted by their place among the K."""


PROPOSALS: dict[str, Capabilities] = {
    "independent": Capabilities(),
    "hierarchical": Capabilities(independent=False, in_blocks=True),
    "hierarchical-independent": Capabilities(in_blocks=True),
}
"""Capabilities by the names in `--proposal`, with uniform weights of the heads."""


def capabilities(proposal: str, weights: str) -> Capabilities:
    """The capabilities of a configuration's proposal with these weights of its heads."""
    of = PROPOSALS[proposal]
    return Capabilities(of.independent, weights == "uniform", of.in_blocks, of.joint)


def check_bounds(rules: Rules, *, k: int, two: bool, draws: Capabilities) -> Iterator[Objection]:
    """The estimator must be valid for K draws of one bound, or of `two` for θ and φ."""
    if draws.in_blocks and two:
        yield _same(
            "Another bound was given for φ, but the draws of a hierarchical proposal are weighted "
            "together by one bound; give one bound for θ and φ."
        )
    if rules.own_phi and two:
        yield Objection(
            f"Estimator {rules.name} updates φ by its own divergence, so another bound for φ would "
            f"never be used; give reparam, stl or dreg, or one bound for θ and φ.",
            f"estimator = {rules.name} was given with an objective for the encoder, but it "
            f"updates the encoder by its own divergence; give --estimator reparam, stl or "
            f"dreg, or one objective for both.",
        )
    if k < rules.least_k:
        yield Objection(
            f"Estimator {rules.name} was given with K = {k}, where its φ gradient has mean zero; "
            f"give K = {rules.least_k} or more, or use dreg.",
            f"estimator = {rules.name} was given with k = {k}, where the encoder's gradient has "
            f"mean zero; give --k {rules.least_k} or more, or --estimator dreg.",
        )


def check_backward(
    backward_draws: int | None, *, two: bool, draws: Capabilities
) -> Iterator[Objection]:
    """`backward_draws` of the K draws, resampled by their weights, must be possible."""
    if backward_draws is None:
        return
    if backward_draws < 1:
        yield _same(
            f"backward_draws = {backward_draws} was given, but a gradient passes through at least "
            f"1 draw; give 1 or more."
        )
    if two:
        yield Objection(
            "backward_draws was given with another bound for φ, but draws are resampled by the "
            "weights of one bound; leave it out, or give one bound for θ and φ.",
            f"backward_draws = {backward_draws} was given with an objective for the encoder, but "
            f"draws are resampled by the weights of one objective; leave it out.",
        )
    if draws.in_blocks or draws.by_place:
        yield _same(
            "backward_draws was given, but this model's draws come in blocks that are weighted "
            "together; leave it out."
        )


def check_kl_weight(rules: Rules) -> Iterator[Objection]:
    """Only estimators of the bound's own gradient take another weight of its KL than 1."""
    if not rules.takes_kl_weight:
        yield Objection(
            f"Estimator {rules.name} was given with a weight of the latent KL, which only reparam, "
            f"stl and dreg take; give one of these, or leave the weight out.",
            f"estimator = {rules.name} was given with kl_warmup, which only reparam, stl and dreg "
            f"take; give one of these, or leave kl_warmup out.",
        )


def check_chunk(chunk: int | None) -> Iterator[Objection]:
    """A chunk must have at least 1 draw."""
    if chunk is not None and chunk < 1:
        yield _same(
            f"chunk = {chunk} was given, but a chunk needs at least 1 draw; give 1 or more."
        )


def check_draws_of(rules: Rules, draws: Capabilities) -> Iterator[Objection]:
    """The estimator must be valid for draws with these capabilities."""
    if rules.independent and not draws.independent:
        yield _same(
            f"Estimator {rules.name} needs independent draws, but this model's proposal makes "
            f"dependent ones; give reparam or stl."
        )
    if not rules.any_density and not draws.own_density:
        yield _same(
            f"Estimator {rules.name} drops the score of the density in the weights, but this "
            f"model's draws have another density; give reparam, or uniform weights of the heads."
        )
    if (rules.own_phi or rules.sleep) and draws.in_blocks:
        yield _same(
            f"Estimator {rules.name} updates φ by a divergence of p(h|x) and q(h|x), which a "
            f"hierarchical proposal does not have; give reparam."
        )
    if rules.sleep and not draws.joint:
        yield _same(
            f"Estimator {rules.name} needs draws (x, h) from the model, but this model does not "
            f"declare that it makes them; define sample_joint(n, key) and, in a subclass of Model, "
            f"samples_joint = True, or use rws."
        )


def check(
    rules: Rules, *, k: int, two: bool, draws: Capabilities, backward_draws: int | None = None
) -> Iterator[Objection]:
    """All rules for an estimator with K draws of a model, for one bound or `two`."""
    yield from check_bounds(rules, k=k, two=two, draws=draws)
    yield from check_backward(backward_draws, two=two, draws=draws)
    yield from check_draws_of(rules, draws)


def estimators_for(draws: Capabilities) -> tuple[EstimatorName, ...]:
    """The estimators that are valid for draws with these capabilities."""
    return tuple(name for name, rules in RULES.items() if not any(check_draws_of(rules, draws)))


def reference_for(draws: Capabilities) -> EstimatorName:
    """The estimator that is unbiased for every smooth bound of such draws."""
    return REFERENCE if draws.independent and draws.own_density else PLAIN
