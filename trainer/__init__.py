"""Batch training job for image classifiers, from a spec and images to a served model."""

__version__ = "0.1.0"
