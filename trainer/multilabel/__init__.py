"""Images with any number of labels: predictions, average precision, metrics and thresholds.

In: label matrices and probabilities, both [images, labels]. Out: numbers. Nothing here knows of a model or of
TensorFlow.
"""
