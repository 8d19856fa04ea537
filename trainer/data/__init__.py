"""The images: found, fetched, unpacked, checked, decoded once, and read in batches."""
