"""Accuracy and latency benchmarks; not installed with the package."""
