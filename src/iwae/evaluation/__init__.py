"""Evaluation: L_K, the terms of the ELBO, active units, posteriors, and the trained model."""

from iwae.evaluation.elbo import posterior_means as posterior_means
from iwae.evaluation.elbo import terms as terms
from iwae.evaluation.examples import mean_and_error as mean_and_error
from iwae.evaluation.examples import over_examples as over_examples
from iwae.evaluation.likelihood import bound_value as bound_value
from iwae.evaluation.likelihood import log_likelihood as log_likelihood
from iwae.evaluation.likelihood import repetitions as repetitions
from iwae.evaluation.posterior import expectation as expectation
from iwae.evaluation.posterior import resample as resample
from iwae.evaluation.trained import Evaluation as Evaluation
from iwae.evaluation.trained import TrainedModel as TrainedModel
from iwae.evaluation.units import Ablation as Ablation
from iwae.evaluation.units import Activity as Activity
from iwae.evaluation.units import ablation as ablation
from iwae.evaluation.units import activity as activity
from iwae.storage.metrics import EpochMetrics as EpochMetrics
from iwae.storage.metrics import History as History
