"""Scaling tests, run by scripts/scale.py."""
