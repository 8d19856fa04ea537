"""Resources of the current phase: its train step, input pipeline and device cache, or the fit of its head."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer.data.dataset import Dataset, Split
from trainer.data.items import label_counts
from trainer.distributed.devices import Cluster
from trainer.model.pretrained import get_head
from trainer.spec import RunSpec
from trainer.training.features import Features, FeatureView
from trainer.training.history import Row
from trainer.training.host_sync import HostSync
from trainer.training.learner import Learner
from trainer.training.objective import get_objective
from trainer.training.phases import Phase
from trainer.training.prefetch import BatchBlock, BatchPrefetcher
from trainer.training.probe import (
    compute_accuracy,
    evaluate_label_logits,
    evaluate_logits,
    fit_label_probe,
    fit_probe,
)
from trainer.training.step import Sums, TrainStep, class_weights
from trainer.training.temperature import fit_temperature

_MEMORY_SHARE = 0.25
"""Share of the smallest device's memory; the rest is for weights, activations and gradients."""


def fits_in_device_cache(split: Split, cluster: Cluster) -> bool:
    """Return whether the images of `split`, or this host's share of them, fit into the device cache."""
    # Shards are for data that is larger than memory, and are read in a stream.
    if cluster.device_kind != "GPU" or split.shards is not None:
        return False
    return (
        math.prod(split.pixels.shape) <= _MEMORY_SHARE * (cluster.memory_bytes or 0) * cluster.process_count
    )


def put_on_devices(pixels: NDArray[np.uint8], strategy: tf.distribute.Strategy) -> Any:
    """Copy uint8 [images, height, width, channels] to each device of this host; return a per-replica value.

    It is not a variable, whose value would be the same on all hosts: each host has other images. Code that a
    strategy runs gets the value of its device; with one replica the result is a plain tensor.
    """
    if strategy.num_replicas_in_sync == 1:
        return tf.constant(pixels)
    devices = strategy.extended.worker_devices

    def put(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        with tf.device(devices[context.replica_id_in_sync_group % len(devices)]):
            return tf.constant(pixels)

    return strategy.experimental_distribute_values_from_function(put)


def build_train_step(
    learner: Learner,
    dataset: Dataset,
    spec: RunSpec,
    cluster: Cluster,
    boundaries: Sequence[int] = (),
    phase: Phase | None = None,
    features: NDArray[np.float32] | None = None,
) -> tuple[TrainStep, BatchPrefetcher]:
    """Return the train step and its input pipeline, for this process's share of the batches.

    boundaries: steps at which a block has to end before it reaches them. phase: by default the first one.
    features: those of the training images, [images, width], which replace the images in a phase with a frozen
    backbone.
    """
    counts = label_counts(dataset.train.labels, len(dataset.class_names))
    objective, count = get_objective(spec.data.labels), len(dataset.train.labels)
    weights = class_weights(spec.train.class_weights, dataset.class_names, counts, objective, count)
    split = dataset.train if features is None else replace(dataset.train, pixels=FeatureView(features))
    is_cached = features is None and fits_in_device_cache(split, cluster)
    prefetcher = BatchPrefetcher(
        split,
        spec.train.global_batch_size,
        spec.seed,
        group_size=2 if spec.augment.mixup or spec.augment.cutmix else 1,
        process_index=cluster.process_index,
        process_count=cluster.process_count,
        has_device_cache=is_cached,
        boundaries=boundaries,
        has_alternating_flip=spec.augment.flip == "alternating",
    )
    images = (
        put_on_devices(dataset.train.pixels.gather(prefetcher.own), cluster.strategy) if is_cached else None
    )
    return TrainStep(learner, spec, weights, cluster, images, phase, features is not None), prefetcher


class PhaseWork:
    """Builds the train step and the pipeline of a phase on entry, and releases those of the previous one."""

    train_step: TrainStep

    def __init__(
        self,
        learner: Learner,
        dataset: Dataset,
        spec: RunSpec,
        cluster: Cluster,
        features: Features | None,
        boundaries: tuple[int, ...] = (),
    ) -> None:
        """features: of the frozen backbone; None disables the cache. boundaries: see `BatchPrefetcher`."""
        self._learner, self._dataset, self._spec, self._cluster = learner, dataset, spec, cluster
        self._features, self._boundaries = features, boundaries
        self._phase: Phase | None = None
        self._blocks: Generator[BatchBlock, None, None] | None = None
        self.prefetcher: BatchPrefetcher | None = None
        """None while the head is fitted."""

    def enter(self, phase: Phase, is_stopped: Callable[[], bool]) -> bool:
        """Build the step and the pipeline of `phase`; return whether it differs from the current phase.

        Raises StoppedError once `is_stopped` returns True.
        """
        if phase is self._phase:
            return False
        self.stop_reading()
        self.prefetcher = None
        if not phase.is_logistic:
            features = self._find_training_features(phase, is_stopped)
            self.train_step, self.prefetcher = build_train_step(
                self._learner, self._dataset, self._spec, self._cluster, self._boundaries, phase, features
            )
        self._phase = phase
        return True

    def blocks(self, step: int) -> Generator[BatchBlock, None, None]:
        """Return the batches from `step` to the end of the phase; prefetch continues during validation."""
        if self._blocks is None and self.prefetcher is not None and self._phase is not None:
            self._blocks = self.prefetcher.blocks(step, self._phase.end_epoch * self._learner.steps_per_epoch)
        if self._blocks is None:
            raise ValueError("The phase has no batches.")
        return self._blocks

    @property
    def uses_xla(self) -> bool:
        """Whether the steps of the phase are compiled with XLA."""
        return self.prefetcher is not None and self.train_step.uses_xla

    def set_block_steps(self, steps: int) -> None:
        """Set the maximum number of steps of the next blocks; see `BatchPrefetcher`."""
        if self.prefetcher is not None:
            self.prefetcher.block_steps = steps

    def stop_reading(self) -> None:
        """Close the input pipeline; `blocks` can then start at any step."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = None

    def fit(self, sync: HostSync, is_stopped: Callable[[], bool]) -> tuple[list[Sums], Row]:
        """Fit the head by logistic regression on the features of the training images.

        Returns the sums of one epoch of steps, which the fit replaces, and the entries for the history.
        Raises StoppedError once `is_stopped` returns True.
        """
        train, head = self._dataset.train, get_head(self._learner.model)
        features = self._compute_features(is_stopped)
        row = None
        if sync.is_chief:
            row = self._fit_head(features, head.trainable_variables, is_stopped)
        variables = {str(index): weight.value for index, weight in enumerate(head.trainable_variables)}
        row = sync.broadcast_variables(variables, row)
        if self._learner.average is not None:
            self._learner.average.reset()
        logits = np.asarray(head(features, training=False), np.float64)
        return self._build_sums(logits, train.labels), row

    def _fit_head(self, features: NDArray[np.float32], weights: Any, is_stopped: Callable[[], bool]) -> Row:
        """Assign the fitted kernel and bias; return the entries for the history."""
        labels, names = self._dataset.train.labels, self._dataset.class_names
        counts, objective = label_counts(labels, len(names)), get_objective(self._spec.data.labels)
        finetune, choice = self._spec.finetune, self._spec.train.class_weights
        folds = finetune.folds if finetune else 2
        loss_weights = class_weights(choice, names, counts, objective, len(labels))
        fit = fit_label_probe if labels.ndim == 2 else fit_probe
        probe = fit(features, labels, loss_weights, folds, is_stopped, self._dataset.train.groups)
        weights[0].assign(probe.kernel)
        weights[1].assign(probe.bias)
        row: Row = {"probe/penalty": probe.penalty}
        if probe.held_out is not None:
            row["probe/cross_validated_accuracy"] = compute_accuracy(probe.held_out, labels)
            if probe.is_tested is not None and labels.ndim == 1:
                rows = probe.is_tested
                row["probe/temperature"] = fit_temperature(probe.held_out[rows], labels[rows])
        return row

    def _build_sums(self, logits: NDArray[np.float64], labels: NDArray[np.int32]) -> list[Sums]:
        losses, hits = (evaluate_label_logits if labels.ndim == 2 else evaluate_logits)(logits, labels)
        empty = [Sums(0.0, 0.0, 0.0)] * (self._learner.steps_per_epoch - 1)
        return [Sums(float(losses.sum()), float(np.sum(hits)), float(len(labels))), *empty]

    def _find_training_features(
        self, phase: Phase, is_stopped: Callable[[], bool]
    ) -> NDArray[np.float32] | None:
        """Return the features of the training images, or None if the phase cannot train on them."""
        if self._features is None or not phase.is_frozen or self._spec.augment.changes_images:
            return None
        return self._compute_features(is_stopped)

    def _compute_features(self, is_stopped: Callable[[], bool]) -> NDArray[np.float32]:
        if self._features is None:
            raise ValueError("Logistic regression needs features.")
        self._learner.fill_inference_model()
        return self._features.of(self._dataset.train, is_stopped)
