"""Scaling of the batch size and the learning rate with the number of replicas.

Without `train.scale_batch` the spec does not change: the global batch is the spec's on any number of
replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.errors import UsageError
from trainer.spec import RunSpec

_LINEAR = ("sgd",)


@dataclass(frozen=True)
class ResolvedSpec:
    """A spec, and the settings that follow from it on the devices of this run."""

    spec: RunSpec
    """As in spec.yaml."""
    effective: RunSpec
    """The same with the global batch size, the learning rate and the precision in use."""


def resolve_spec(spec: RunSpec, replicas: int, precision: str) -> ResolvedSpec:
    """Return `spec` with its settings for `replicas` replicas in `precision` ("float32", "bfloat16", ...)."""
    scaled = scaled_spec(spec, replicas)
    train = scaled.train.model_copy(update={"precision": precision})
    return ResolvedSpec(spec, scaled.model_copy(update={"train": train}))


def scaled_spec(spec: RunSpec, replicas: int) -> RunSpec:
    """Return `spec` with its batch size per replica, and the learning rate scaled by the optimizer's rule.

    The rule is linear in the batch size for stochastic gradient descent (Goyal et al. 2017, section 2.1), and
    its square root for optimizers that divide by the size of the gradient (Malladi et al. 2022, definitions 1
    and 2: RMSprop and Adam, without scaling their other constants; and Muon). The moving average of the
    weights covers as many images as before: its decay is raised to the power of the factor (Busbridge et al.
    2023, the EMA scaling rule). Durations in epochs, such as the warm-up, have fewer steps automatically.
    """
    if not spec.train.scale_batch:
        return spec
    changes = {
        "global_batch_size": replicas * spec.train.global_batch_size,
        "ema_decay": spec.train.ema_decay**replicas,
    }
    rates = {key: getattr(spec.optimizer, key) for key in ("learning_rate", "rest_rate")}
    scaled = {key: rate and rate * _factor(spec, replicas) for key, rate in rates.items()}
    optimizer = spec.optimizer.model_copy(update=scaled)
    return spec.model_copy(update={"train": spec.train.model_copy(update=changes), "optimizer": optimizer})


def describe_scaling(spec: RunSpec, replicas: int) -> str | None:
    """Return a description of what `scaled_spec` changes; None without `train.scale_batch`."""
    if not spec.train.scale_batch:
        return None
    name, rate, decay = spec.optimizer.name, spec.optimizer.learning_rate, spec.train.ema_decay
    rule = "linear" if name in _LINEAR else "square root"
    return (
        f"global batch {spec.train.global_batch_size} x {replicas} "
        f"replica{'s' * (replicas > 1)} = {replicas * spec.train.global_batch_size}, learning rate "
        f"{rate:g} x {_factor(spec, replicas):.4g} (the {rule} rule of {name})"
    ) + (f", ema_decay {decay:g} to the power of {replicas}" if decay else "")


def require_whole_batch(spec: RunSpec, replicas: int, images: int) -> None:
    """Raise UsageError if there are fewer `images` than a scaled batch: the rate would be too high."""
    if spec.train.scale_batch and (batch := replicas * spec.train.global_batch_size) > images:
        raise UsageError(
            f"train.scale_batch sets the global batch to {batch} images on {replicas} devices, and there are "
            f"fewer training images.",
            "Lower train.global_batch_size.",
            received=f"{images} images",
        )


def require_equal_shares(spec: RunSpec, cores: int, images: int) -> None:
    """Raise UsageError unless all `cores` of a TPU have the same number of pairs of every batch.

    XLA compiles for one number of rows on all cores. `spec` is the result of `scaled_spec`.
    """
    batch = spec.train.global_batch_size
    if cores > 1 and (batch % (2 * cores) or images % batch % (2 * cores)):
        raise UsageError(
            f"On a TPU with {cores} cores every batch, including the last one of an epoch, must have a "
            f"multiple of {2 * cores} images.",
            "Choose another train.global_batch_size, or remove some images.",
            received=f"batches of {batch} of {images} images",
        )


def _factor(spec: RunSpec, replicas: int) -> float:
    return float(replicas) if spec.optimizer.name in _LINEAR else math.sqrt(replicas)
