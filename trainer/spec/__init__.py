"""Run specification: immutable, validated settings of a run.

`load_spec` merges a recipe, a YAML file and single settings into a `RunSpec`. `dump_spec` writes the resolved
spec, which describes the same run when loaded again. `spec_digest` identifies it. `spec_changes` lists the
keys in which two specs differ.
"""

from trainer.spec.augment import AugmentSpec, CropSpec
from trainer.spec.load import (
    dump_shown_spec,
    dump_spec,
    explicit_settings,
    has_secret,
    load_spec,
    parse_spec,
    read_spec,
    setting_digests,
    spec_changes,
    spec_digest,
    with_choices,
)
from trainer.spec.networks import AirbenchSpec, PlainSpec, PretrainedSpec, ResidualSpec
from trainer.spec.optimizer import USUAL_RATES, OptimizerSpec
from trainer.spec.pixels import PIXEL_SETTINGS, PixelFormat, format_size, sides_of
from trainer.spec.schema import (
    SCRATCH,
    CheckpointSpec,
    DataSpec,
    EarlyStoppingSpec,
    ExportSpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
)

__all__ = [
    "PIXEL_SETTINGS",
    "SCRATCH",
    "USUAL_RATES",
    "AirbenchSpec",
    "AugmentSpec",
    "CheckpointSpec",
    "CropSpec",
    "DataSpec",
    "EarlyStoppingSpec",
    "ExportSpec",
    "ModelSpec",
    "OptimizerSpec",
    "PixelFormat",
    "PlainSpec",
    "PretrainedSpec",
    "ResidualSpec",
    "RunSpec",
    "TrainSpec",
    "dump_shown_spec",
    "dump_spec",
    "explicit_settings",
    "format_size",
    "has_secret",
    "load_spec",
    "parse_spec",
    "read_spec",
    "setting_digests",
    "sides_of",
    "spec_changes",
    "spec_digest",
    "with_choices",
]
