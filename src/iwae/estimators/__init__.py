"""Gradient estimators: from a bound and a model to a loss, and what its gradients are worth."""

from iwae.estimators.surrogate import ESTIMATORS as ESTIMATORS
from iwae.estimators.surrogate import Estimator as Estimator
from iwae.estimators.surrogate import surrogate_loss as surrogate_loss
