"""The main paths at the width of JAX that the process has; run as a script, printed as JSON."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import iwae
from iwae import bounds
from iwae._utils import threefry
from iwae.config.io import override, recipe
from iwae.config.schema import ModelConfig
from iwae.estimators import surrogate
from iwae.evaluation import posterior
from iwae.evaluation.likelihood import log_likelihood
from iwae.evaluation.trained import TrainedModel
from iwae.experiments import toy_densities
from iwae.models.build import build
from iwae.numpyro import ImportanceELBO

TINY = override(recipe("smoke"), k=2, hidden=((8,),), latents=(3,), epochs=3)
"""That of the fixtures."""

LOG_W = np.array([0.3, -1.2, 2.0], np.float32)


def trained(out: Path) -> TrainedModel:
    """The tiny run, trained, resumed and loaded."""
    iwae.train(TINY, out=out, epochs=2)
    iwae.train(TINY, out=out, resume=True)
    return iwae.load(out)


def of_a_run(trained: TrainedModel) -> dict[str, Any]:
    """Evaluated, scored, sampled, encoded and reconstructed."""
    x = trained.data().test[:3]
    e = trained.evaluate(k=4, limit=3)
    assert e.activity is not None
    return {
        "evaluation": np.array([e.nll, e.nll_se, e.elbo, *e.kl, *e.activity[0]], np.float32),
        "scores": trained.score(x, k=4),
        "codes": trained.encode(x),
        "means": trained.sample(3),
        "draws": trained.sample(3, mean=False),
        "again": trained.reconstruct(x)[1],
    }


def composed() -> dict[str, Any]:
    """What a program of one's own is made of, of parameters and examples in 32 bits."""
    key, x = threefry.key(3), jnp.asarray([0.0, 3.0, 1.0], jnp.float32)

    @eqx.filter_jit
    def built() -> Any:
        config = ModelConfig(hidden=((4,),), latents=(2,), likelihood="NegativeBinomial2")
        moments: dict[str, Any] = {"mean": np.ones(3), "spread": np.ones(3)}
        return build(config, kind="real", **moments, key=key)

    @eqx.filter_jit
    def parts(model: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {"likelihood": log_likelihood(model, x, key, k=5)}
        seen["resampled"] = posterior.resample(model, x, key, k=4, n=2)[0]
        by: dict[str, Any] = {"bound": partial(bounds.jvi, order=1), "k": 4, "estimator": "dreg"}
        loss = lambda model: surrogate.surrogate_loss(model, x, key, **by)[0]
        seen["gradient"] = jax.tree.leaves(eqx.filter_grad(loss)(model))[-1]
        return seen

    @jax.jit
    def others() -> dict[str, Any]:
        seen: dict[str, Any] = {"target": toy_densities.draw("mixture", 3, key)}
        log_w = jnp.asarray(LOG_W)
        for name in ("vae", "iwae", "jvi"):
            bound = bounds.named(name, order=2).theta
            seen[name] = jnp.stack([jax.grad(bound)(log_w), bounds.curvature(bound, log_w)])
        seen["own"] = bounds.curvature(lambda log_w: bounds.iwae(log_w), log_w)
        return seen

    return others() | parts(built())


def in_numpyro() -> dict[str, Any]:
    """The bound of NumPyro's models and guides, whose width is JAX's."""
    data = np.array([0.3, 1.5], np.float32)

    def model(data: Any) -> None:
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide(data: Any) -> None:
        with numpyro.plate("n", 2):
            numpyro.sample("z", dist.Normal(numpyro.param("m", jnp.zeros(2)), 0.5**0.5))

    @partial(jax.jit, static_argnums=0)
    def loss(estimator: str, m: Any) -> Any:
        elbo = ImportanceELBO(num_particles=3, estimator=estimator)
        return elbo.loss(jax.random.key(0), {"m": m}, model, guide, data)

    of = lambda estimator: jax.value_and_grad(partial(loss, estimator))(jnp.asarray(data / 2))
    return {estimator: of(estimator) for estimator in ("reparam", "dreg")}


if __name__ == "__main__":
    found = of_a_run(trained(Path(sys.argv[1]))) | composed()
    assert jnp.zeros(()).dtype == np.float64, "the user's own mode is as it was"
    wide = {n for n, v in found.items() if v.dtype != np.float32}
    assert not wide, wide
    bound = in_numpyro()
    print(json.dumps({n: np.asarray(v, float).ravel().tolist() for n, v in found.items()}))
    print(json.dumps({n: float(value) for n, (value, _) in bound.items()}))
