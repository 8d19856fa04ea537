"""The run as frozen, validated values: YAML and settings in, a `RunSpec` out.

`load_spec` puts a recipe, a file and single settings together; `dump_spec` writes the
resolved spec, which read again is the same run; `spec_digest` names it; `spec_changes`
lists the keys in which two specs differ.
"""

from trainer.spec.airbench import AirbenchSpec
from trainer.spec.augment import AugmentSpec, CropSpec
from trainer.spec.load import (
    dump_shown_spec,
    dump_spec,
    has_secret,
    load_spec,
    parse_spec,
    read_spec,
    spec_changes,
    spec_digest,
)
from trainer.spec.schema import (
    SCRATCH,
    USUAL_RATES,
    CheckpointSpec,
    DataSpec,
    EarlyStoppingSpec,
    ModelSpec,
    OptimizerSpec,
    PlainSpec,
    ResidualSpec,
    RunSpec,
    TrainSpec,
)

__all__ = [
    "SCRATCH",
    "USUAL_RATES",
    "AirbenchSpec",
    "AugmentSpec",
    "CheckpointSpec",
    "CropSpec",
    "DataSpec",
    "EarlyStoppingSpec",
    "ModelSpec",
    "OptimizerSpec",
    "PlainSpec",
    "ResidualSpec",
    "RunSpec",
    "TrainSpec",
    "dump_shown_spec",
    "dump_spec",
    "has_secret",
    "load_spec",
    "parse_spec",
    "read_spec",
    "spec_changes",
    "spec_digest",
]
