"""Latent-variable models: what one has to say, the autoencoder, and its parts."""

from iwae.models.autoencoder import Autoencoder as Autoencoder
from iwae.models.autoencoder import FromFunctions as FromFunctions
from iwae.models.autoencoder import Model as Model
from iwae.models.autoencoder import draw_log_weights as draw_log_weights
from iwae.models.autoencoder import log_weights as log_weights
from iwae.models.build import build as build
