"""How fast iwae is, beside the same programs written in plain PyTorch: `python -m benchmarks`."""
