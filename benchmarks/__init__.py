"""How fast iwae is, beside the same programs written in plain PyTorch: `python -m benchmarks`."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # the rival runs there, whatever else the machine has
