"""The rivals' densities, each fitted on standardised rows and given in the user's own units."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KernelDensity, LocalOutlierFactor

COMPONENTS = range(1, 11)
"""Numbers of components that BIC chooses from."""

STARTS = 3
"""Starts of each mixture."""

BANDWIDTHS = tuple(np.geomspace(0.05, 2, 25).tolist())
"""Bandwidths that five-fold cross-validation chooses from, in standard deviations."""

Scores = tuple[Float[np.ndarray, " test"], str]
"""The log-density of each row in nats, and what was chosen."""


def standardised(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both in standard deviations of training, and log |dz/dx|."""
    mean, spread = train.mean(axis=0), train.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return (train - mean) / spread, (test - mean) / spread, -float(np.log(spread).sum())


def single_gaussian(train: np.ndarray, test: np.ndarray, seed: int) -> Scores:
    """One Gaussian with the full covariance of training."""
    z, z_test, log_jacobian = standardised(train, test)
    model = GaussianMixture(1, random_state=seed).fit(z)
    return model.score_samples(z_test) + log_jacobian, ""


def mixture(train: np.ndarray, test: np.ndarray, seed: int) -> Scores:
    """A mixture of Gaussians with full covariances, as many as BIC chooses."""
    z, z_test, log_jacobian = standardised(train, test)
    model = _chosen_mixture(z, seed)
    return model.score_samples(z_test) + log_jacobian, f"{model.n_components} components"


def _chosen_mixture(z: np.ndarray, seed: int) -> GaussianMixture:
    fitted = [GaussianMixture(c, n_init=STARTS, random_state=seed).fit(z) for c in COMPONENTS]
    return min(fitted, key=lambda model: model.bic(z))


def kernels(train: np.ndarray, test: np.ndarray, seed: int) -> Scores:
    """A Gaussian kernel on every row, with the bandwidth that cross-validation chooses."""
    z, z_test, log_jacobian = standardised(train, test)
    search = GridSearchCV(KernelDensity(), {"bandwidth": BANDWIDTHS}, cv=5).fit(z)
    bandwidth = search.best_params_["bandwidth"]
    scores = search.best_estimator_.score_samples(z_test)
    return scores + log_jacobian, f"bandwidth {bandwidth:.2g}"


def isolation(train: np.ndarray, test: np.ndarray, seed: int) -> Scores:
    """How deep random trees have to go to isolate a row: an order of rows, not a density."""
    z, z_test, _ = standardised(train, test)
    return IsolationForest(random_state=seed).fit(z).score_samples(z_test), ""


def neighbours(train: np.ndarray, test: np.ndarray, seed: int) -> Scores:
    """The density of a row relative to that of its neighbours: an order of rows."""
    z, z_test, _ = standardised(train, test)
    model: Any = LocalOutlierFactor(novelty=True).fit(z)
    return model.score_samples(z_test), ""


def marginals(
    train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], step: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " m"]:
    """Σ_j log p_j(x_j), the background of a likelihood ratio (Ren et al. 2019).

    Discrete columns by frequencies, of which each value of training or testing has one more;
    continuous ones by kernels with Scott's bandwidth.
    """
    columns = zip(train.T, test.T, step, strict=True)
    return np.sum([_frequency(*of) if discrete else _kernels(*of) for *of, discrete in columns], 0)


def _frequency(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    values, at = np.unique(np.concatenate([train, test]), return_inverse=True)
    counts = 1 + np.bincount(at[: len(train)], minlength=len(values))
    return np.log(counts / counts.sum())[at[len(train) :]]


def _kernels(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    model = KernelDensity(bandwidth=max(train.std(), 1e-12) * len(train) ** -0.2)
    return model.fit(train[:, None]).score_samples(test[:, None])


Model = Callable[[np.ndarray, np.ndarray, int], Scores]

DENSITIES: dict[str, Model] = {
    "Gaussian": single_gaussian,
    "GaussianMixture": mixture,
    "KernelDensity": kernels,
}

DETECTORS: dict[str, Model] = {
    "IsolationForest": isolation,
    "LocalOutlierFactor": neighbours,
    "GaussianMixture": mixture,
}
