"""The configuration of a run: its fields, their validation, and their TOML."""

from iwae.config.io import differences as differences
from iwae.config.io import override as override
from iwae.config.io import parse as parse
from iwae.config.io import recipe as recipe
from iwae.config.io import recipe_names as recipe_names
from iwae.config.schema import DataConfig as DataConfig
from iwae.config.schema import ModelConfig as ModelConfig
from iwae.config.schema import ObjectiveConfig as ObjectiveConfig
from iwae.config.schema import RunConfig as RunConfig
from iwae.config.schema import TrainingConfig as TrainingConfig
