"""Evaluation: metrics, confidence intervals, significance tests and prediction."""
