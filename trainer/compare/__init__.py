"""Comparison of finished runs: which is better, how sure that is, and how they differ."""
