"""A batch training job for image classifiers: one spec, from images to a served model."""

__version__ = "0.1.0"
