"""Data augmentation: stateless image transforms, seeded by (seed, epoch, position)."""
