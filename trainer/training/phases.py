"""Phases of a training: which weights are trained in which epochs, and by which optimizers.

A network from scratch has one phase. A pretrained backbone is first frozen, then its last stage is trained,
then all stages. Each phase creates its own optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from trainer.model.layers import frozen_statistics
from trainer.model.pretrained import get_backbone, get_head, stages_of
from trainer.spec import RunSpec
from trainer.spec.optimizer import FinetuneSpec
from trainer.training.optimizer import Schedule, build_optimizer

Weights = Sequence[keras.Variable]


@dataclass(frozen=True)
class WeightGroup:
    """Weights that share an optimizer and its learning-rate schedule."""

    weights: Weights
    optimizer: keras.Optimizer
    schedule: Schedule


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs in which the same weights are trained."""

    name: str
    first_epoch: int
    """From 0."""
    end_epoch: int
    """Exclusive: the first epoch after the phase."""
    first_step: int
    groups: tuple[WeightGroup, ...]
    """Empty for logistic regression."""
    forward: Callable[[Any], Any]
    """Computes the logits of a batch for training."""
    changing: Weights
    """All weights that the phase changes, including moving statistics."""
    is_frozen: bool = False
    """Whether the backbone is not changed, so that its outputs may be cached."""

    @property
    def is_logistic(self) -> bool:
        """Whether the head is fitted by logistic regression instead of gradient steps."""
        return not self.groups

    @property
    def weights(self) -> list[keras.Variable]:
        """The trained weights of all groups, in the order of the groups."""
        return [weight for group in self.groups for weight in group.weights]

    def learning_rate(self) -> float:
        """Return the current learning rate of the head, or of all weights; 0 for logistic regression."""
        return float(self.groups[0].optimizer.learning_rate) if self.groups else 0.0

    def apply(self, gradients: Sequence[tf.Tensor]) -> None:
        """Update `weights` by their `gradients`, which are already summed over all replicas."""
        start = 0
        for group in self.groups:
            end = start + len(group.weights)
            group.optimizer.apply(gradients[start:end], list(group.weights))
            start = end


def build_phases(
    spec: RunSpec,
    model: keras.Model,
    steps_per_epoch: int,
    scale: tf.Variable,
    precision: str = "float32",
) -> tuple[Phase, ...]:
    """Return the phases of a training, in order; together they cover all epochs.

    scale: multiplies all learning rates.
    """
    epochs = spec.train.epochs
    if (finetune := spec.finetune) is None:
        optimizer, schedule = build_optimizer(
            spec.optimizer,
            model.trainable_variables,
            steps_per_epoch,
            epochs * steps_per_epoch,
            scale,
            precision=precision,
        )
        group = WeightGroup(model.trainable_variables, optimizer, schedule)
        return (Phase("", 0, epochs, 0, (group,), lambda x: model(x, training=True), model.weights),)
    return tuple(_build_finetuning_phases(spec, finetune, model, steps_per_epoch, scale, precision))


def _build_finetuning_phases(
    spec: RunSpec,
    finetune: FinetuneSpec,
    model: keras.Model,
    steps_per_epoch: int,
    scale: tf.Variable,
    precision: str,
) -> Iterator[Phase]:
    backbone, head = get_backbone(model), get_head(model)
    stages = stages_of(backbone)
    first = 0
    for name, count in epochs_of_phases(finetune, spec.train.epochs):
        trained = {"frozen": 0, "last stage": 1, "all": len(stages)}[name]
        updates = name == "all" and finetune.batch_norm == "train"
        groups = [*_rate_multipliers(head, stages, trained, finetune)]
        is_logistic = name == "frozen" and finetune.probe == "logistic"
        changing = [weight for weights, _ in groups for weight in weights]
        yield Phase(
            name=name,
            first_epoch=first,
            end_epoch=first + count,
            first_step=first * steps_per_epoch,
            groups=()
            if is_logistic
            else tuple(_build_groups(groups, spec, steps_per_epoch, count, scale, precision)),
            forward=_build_forward(backbone, head, trained > 0, updates),
            changing=model.weights if updates else changing,
            is_frozen=trained == 0,
        )
        first += count


def epochs_of_phases(finetune: FinetuneSpec, epochs: int) -> list[tuple[str, int]]:
    """Return (name, epochs) of each phase that has at least one of the `epochs`, in order."""
    left = epochs - finetune.first_epochs
    phases = [("frozen", finetune.frozen), ("last stage", finetune.last_stage_epochs), ("all", left)]
    return [(name, count) for name, count in phases if count > 0]


def _rate_multipliers(
    head: keras.Model, stages: Sequence[Weights], trained: int, finetune: FinetuneSpec
) -> Iterator[tuple[Weights, float]]:
    """Yield weights with the multiplier of their learning rate: of the head, then of the last stages."""
    yield head.trainable_variables, 1.0
    for depth, weights in enumerate(reversed(stages[len(stages) - trained :])):
        yield weights, finetune.backbone_rate * finetune.layer_decay**depth


def _build_groups(
    rated: Sequence[tuple[Weights, float]],
    spec: RunSpec,
    steps_per_epoch: int,
    epochs: int,
    scale: tf.Variable,
    precision: str,
) -> Iterator[WeightGroup]:
    """Yield one group per distinct multiplier."""
    by_factor: dict[float, list[keras.Variable]] = {}
    for weights, factor in rated:
        by_factor.setdefault(factor, []).extend(weights)
    for factor, weights in by_factor.items():
        optimizer, schedule = build_optimizer(
            spec.optimizer, weights, steps_per_epoch, epochs * steps_per_epoch, scale, factor, precision
        )
        yield WeightGroup(weights, optimizer, schedule)


def _build_forward(
    backbone: keras.Model, head: keras.Model, trains_backbone: bool, updates_statistics: bool
) -> Callable[[Any], Any]:
    """Return the function from pixels to logits in training.

    If part of the backbone is trained, its stochastic depth is active. Batch normalization uses the
    pretrained statistics unless `updates_statistics`.
    """

    def forward(pixels: Any) -> Any:
        with frozen_statistics(not updates_statistics):
            features = backbone(pixels, training=trains_backbone)
        return head(features, training=True)

    return forward
