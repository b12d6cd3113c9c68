"""Training: the step, the optimisers, the trainer, callbacks and loggers."""

from iwae.training.callbacks import SAVE as SAVE
from iwae.training.callbacks import Callback as Callback
from iwae.training.callbacks import Checkpoint as Checkpoint
from iwae.training.callbacks import EarlyStopping as EarlyStopping
from iwae.training.callbacks import End as End
from iwae.training.callbacks import EpochEnd as EpochEnd
from iwae.training.callbacks import Start as Start
from iwae.training.callbacks import StepChunk as StepChunk
from iwae.training.callbacks import Stop as Stop
from iwae.training.callbacks import TrainerState as TrainerState
from iwae.training.callbacks import Validation as Validation
from iwae.training.loggers import MLflow as MLflow
from iwae.training.loggers import TensorBoard as TensorBoard
from iwae.training.loggers import WeightsAndBiases as WeightsAndBiases
