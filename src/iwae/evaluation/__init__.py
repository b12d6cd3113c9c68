"""What a model is worth: L_K, its terms, its units, its posterior; and the fitted model itself."""

from iwae.evaluation.evaluator import activity as activity
from iwae.evaluation.evaluator import bound_value as bound_value
from iwae.evaluation.evaluator import log_likelihood as log_likelihood
from iwae.evaluation.evaluator import over_examples as over_examples
from iwae.evaluation.evaluator import posterior_means as posterior_means
from iwae.evaluation.evaluator import terms as terms
from iwae.evaluation.posterior import expectation as expectation
from iwae.evaluation.posterior import resample as resample
from iwae.evaluation.trained import Evaluation as Evaluation
from iwae.evaluation.trained import TrainedModel as TrainedModel
