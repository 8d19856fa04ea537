"""Settings of a run on two hosts."""

SETTINGS = [
    "data.image_size=16", "train.epochs=30", "train.global_batch_size=5", "train.deterministic=true",
    "train.precision=float32", "train.steps_per_call=1", "train.log_interval_seconds=0.0001",
    "train.checkpoint.every_steps=4", "train.meet_seconds=120",
    "model={family: residual, stem_filters: 4, filters: [8], blocks: [1], dropout: 0.3}",
]  # fmt: skip
