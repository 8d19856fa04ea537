"""Image data sets: fetching, unpacking, validation, decoding and batching."""
