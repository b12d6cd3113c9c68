"""The gradient estimators, each a choice of two coefficients.

With ℓ_i = log w_i, c = ∇bound(ℓ) and H its Hessian, both held constant, every estimator here is

    θ:  Σ_i c_i ∇θ log p(x, h_i)
    φ:  Σ_i b_i path_i + Σ_i s_i ∇φ log q(h_i|x) at fixed h_i,

where path_i = (∂ℓ_i/∂h_i)(∂h_i/∂φ) holds the parameters inside log q fixed. An `Estimator` is the
choice of b (`path`) and s (`score`). That b = c − H_ii is unbiased for every smooth bound of
independent draws follows from integrating the score term by parts once more, as Tucker et al. do
for L_K.

Your own estimator is one line of (b, s), for `surrogate_loss` and `iwae.train(estimator=…)`:

    halfway = Estimator(path=lambda w: w.c - w.h_ii / 2, score=lambda w: -w.c / 2, name="halfway")
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax
from jaxtyping import Array, Float

from iwae.bounds import BoundFunction, curvature
from iwae.estimators import rules
from iwae.estimators.rules import Rules

PerDraw = Float[Array, " k"]
Scalar = Float[Array, ""]


@dataclass(frozen=True)
class Weights:
    """The weights of the K draws of one example, from which estimators compute coefficients."""

    log_w: PerDraw
    phi: BoundFunction
    """The bound for the recognition parameters φ."""
    kl_weight: Scalar | float = 1.0
    """β in log w_i = log p(x|h_i) + β [log p(h_i) − log q(h_i|x)]."""

    @property
    def c(self) -> PerDraw:
        """∂bound/∂log w_i."""
        return jax.grad(lambda log_w: self.phi(log_w))(self.log_w)

    @property
    def h_ii(self) -> PerDraw:
        """H_ii = ∂²bound/∂(log w_i)²."""
        return curvature(self.phi, self.log_w)

    @property
    def w(self) -> PerDraw:
        """w̃_i = w_i / Σ_j w_j."""
        return jax.nn.softmax(self.log_w)


Coefficient = Callable[[Weights], PerDraw]


@dataclass(frozen=True)
class Estimator(Rules):
    """The coefficients b of the paths and s of the scores of log q, and the rules of their use.

    None stands for zero coefficients.
    """

    path: Coefficient | None = None
    score: Coefficient | None = None


def _known(name: str, b: Coefficient | None = None, s: Coefficient | None = None) -> Estimator:
    """An estimator of the package, with the rules of its name."""
    return Estimator(path=b, score=s, **asdict(rules.rules_of(name)))


ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        _known("reparam", b=lambda w: w.c, s=lambda w: -w.c),
        _known("stl", b=lambda w: w.c),
        _known("dreg", b=lambda w: w.c - w.kl_weight * w.h_ii),
        _known("rws", s=lambda w: w.w),
        _known("rws-sleep"),
        _known("rws-dreg", b=lambda w: w.w - w.w**2),
        _known("aisle-kl", b=lambda w: w.w),
        _known("aisle-chi2", b=lambda w: 2 * len(w.w) * w.w**2),
    )
}
"""Estimators by their names in `--estimator`:

- `reparam`: plain reparametrisation (Burda et al. Eq. 13); unbiased.
- `stl`: without the score (Roeder et al. 2017); unbiased for the ELBO only.
- `dreg`: doubly reparametrised, b = c − H_ii: w̃² for L_K (Tucker et al. 2018), αw̃ + (1−α)w̃² for
  VR-IWAE (Daudel et al. 2023), and accordingly for every other bound; unbiased. With a weight β of
  the latent KL, c − β H_ii.
- `rws`, `rws-sleep`: wake-φ Σ w̃ ∇φ log q(h) and sleep-φ (Bornschein & Bengio 2015).
- `rws-dreg`: wake-φ doubly reparametrised, b = w̃ − w̃² (Tucker et al. 2018).
- `aisle-kl`, `aisle-chi2`: b = w̃ and b = 2K w̃² (Finke & Thiery 2019).
"""


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of this name; `InputError` if there is none."""
    if isinstance(estimator, Estimator):
        return estimator
    return ESTIMATORS[rules.rules_of(estimator).name]
