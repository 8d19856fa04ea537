"""Runs beside each other: which is better and how sure that is, and what is different about them."""
