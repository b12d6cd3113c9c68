"""Latent-variable models: the contract, the autoencoder, and its parts."""

from iwae.models.autoencoder import Autoencoder as Autoencoder
from iwae.models.base import AbstractAutoencoder as AbstractAutoencoder
from iwae.models.base import FromFunctions as FromFunctions
from iwae.models.base import Model as Model
from iwae.models.base import ModelLike as ModelLike
from iwae.models.base import as_model as as_model
from iwae.models.base import draw_log_weights as draw_log_weights
from iwae.models.base import log_weights as log_weights
from iwae.models.build import build as build
from iwae.models.pruning import prune as prune
