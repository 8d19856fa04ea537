"""Multi-label classification: predictions, average precision, metrics and thresholds.

The modules work on label matrices and probabilities, both [images, labels]. They depend neither on a model
nor on TensorFlow.
"""
