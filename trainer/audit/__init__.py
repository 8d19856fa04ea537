"""Audit of a data set: duplicates, label errors, odd images, shortcuts and noise."""
