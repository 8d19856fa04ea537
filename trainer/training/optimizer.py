"""Learning-rate schedule and optimizer.

The learning rate is a pure function of the optimizer's own step, so a restored optimizer continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.compat import apply_without_all_reduce
from trainer.spec import OptimizerSpec
from trainer.training.muon import Muon


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Linear warm-up, then constant, linear or cosine decay (Loshchilov and Hutter 2016), times `scale`.

    `scale` is a variable, initially 1, which recovery from divergence halves; `factor` is a constant.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        steps_per_epoch: int,
        total_steps: int,
        scale: tf.Variable | None = None,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec, self.peak = spec, factor * spec.learning_rate
        self.warmup_steps = round(spec.warmup_epochs * steps_per_epoch)
        self.decay_steps = max(1, total_steps - self.warmup_steps)
        self.scale = build_scale() if scale is None else scale

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate of `step`, counted from 0, as a float32 scalar."""
        step = tf.cast(step, tf.float32)
        warmup = tf.minimum(1.0, (step + 1.0) / (self.warmup_steps + 1.0))
        return self.peak * self.scale * warmup * self._decay(step)

    def _decay(self, step: tf.Tensor) -> tf.Tensor:
        if self.spec.schedule == "constant":
            return tf.constant(1.0)
        progress = tf.clip_by_value((step - self.warmup_steps) / self.decay_steps, 0.0, 1.0)
        is_linear = self.spec.schedule == "linear"
        left = 1.0 - progress if is_linear else 0.5 * (1.0 + tf.cos(math.pi * progress))
        return self.spec.final_fraction + (1.0 - self.spec.final_fraction) * left

    def get_config(self) -> dict[str, Any]:
        """Return the spec's values, as Keras requires."""
        return self.spec.model_dump()


def build_scale() -> tf.Variable:
    """Return the variable that multiplies all learning rates, initially 1."""
    return tf.Variable(1.0, trainable=False, dtype=tf.float32, name="learning_rate_scale")


def build_optimizer(
    spec: OptimizerSpec,
    weights: Sequence[keras.Variable],
    steps_per_epoch: int,
    total_steps: int,
    scale: tf.Variable | None = None,
    factor: float = 1.0,
    precision: str = "float32",
) -> tuple[keras.Optimizer, Schedule]:
    """Return the optimizer, built for `weights`, and its schedule with `factor` times the learning rate.

    The optimizer does not clip: the training step clips after the gradients of all replicas are summed, and
    Keras would clip before. `apply` therefore expects summed gradients. `precision` is the model's, see
    `build_model`, and also that of Muon's matrix products.
    """
    schedule = Schedule(spec, steps_per_epoch, total_steps, scale, factor)
    optimizer = _optimizer(spec, schedule, precision)
    apply_without_all_reduce(optimizer)
    if spec.weight_decay and spec.name != "muon":
        # Biases and normalization weights have one dimension; weight decay does not improve them (He et al.
        # 2019).
        optimizer.exclude_from_weight_decay([weight for weight in weights if len(weight.shape) < 2])
    optimizer.build(weights)
    return optimizer, schedule


def _optimizer(spec: OptimizerSpec, schedule: Schedule, precision: str) -> keras.Optimizer:
    common: dict[str, Any] = {"learning_rate": schedule, "weight_decay": spec.weight_decay or None}
    if spec.name == "sgd":
        return keras.optimizers.SGD(momentum=spec.momentum, nesterov=spec.nesterov, **common)
    if spec.name == "rmsprop":
        return keras.optimizers.RMSprop(momentum=spec.momentum, **common)
    if spec.name == "adam":
        return keras.optimizers.Adam(**common)
    if spec.name == "muon":
        return Muon(
            schedule,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            decay=spec.weight_decay,
            rest_ratio=(spec.rest_rate or spec.learning_rate) / spec.learning_rate,
            rest_momentum=spec.rest_momentum if spec.rest == "sgd" else None,
            unit_kernels=spec.unit_kernels,
            compute_dtype=precision,
        )
    # Keras's AdamW has a default decay of 0.004.
    return keras.optimizers.AdamW(**{**common, "weight_decay": spec.weight_decay})
