"""Benchmarks of the training step and its parts, run by scripts/bench.py."""
