"""Benchmarks of the training loop and its parts: `python -m benchmarks` measures, `results/benchmarks/` keeps."""
