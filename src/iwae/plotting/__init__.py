"""Pictures of tables, and the report of runs."""

from iwae.plotting.tables import correlation as correlation
from iwae.plotting.tables import correlations as correlations
from iwae.plotting.tables import latents as latents
from iwae.plotting.tables import marginal as marginal
from iwae.plotting.tables import marginals as marginals
from iwae.plotting.tables import missingness as missingness
from iwae.plotting.tables import scores as scores
