"""The run directory: configuration, metrics, checkpoint, model and evaluations."""

from iwae.storage.evaluations import Evaluation as Evaluation
from iwae.storage.evaluations import read_evaluations as read_evaluations
from iwae.storage.metrics import EpochMetrics as EpochMetrics
from iwae.storage.metrics import History as History
from iwae.storage.run_config import identity as identity
from iwae.storage.run_config import read_config as read_config
from iwae.storage.run_config import replicas as replicas
from iwae.storage.run_directory import RunDirectory as RunDirectory
from iwae.storage.run_directory import history_of as history_of
from iwae.storage.run_directory import open_run as open_run
from iwae.storage.run_directory import open_runs as open_runs
from iwae.storage.run_directory import read_metrics as read_metrics
from iwae.storage.run_directory import read_model as read_model
from iwae.storage.run_directory import read_progress as read_progress
