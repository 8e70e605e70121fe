"""Comparisons with torchvision, each in one process; run them as modules, for example `python -m benchmarks.inference`."""
