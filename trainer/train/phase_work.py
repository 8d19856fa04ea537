"""Resources of the current phase: its train step and input pipeline, or the fit of its head."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.data.labels import label_counts
from trainer.distributed.devices import Cluster
from trainer.model.pretrained import head_of
from trainer.spec import RunSpec
from trainer.train.agreement import HostSync
from trainer.train.features import Features
from trainer.train.history import Row
from trainer.train.label_probe import fit_label_probe, judge_label_logits
from trainer.train.learner import Learner
from trainer.train.objective import objective_of
from trainer.train.parts import build_parts
from trainer.train.phases import Phase
from trainer.train.prefetch import BatchBlock, BatchPrefetcher
from trainer.train.probe import accuracy_of, fit_probe, judge_logits
from trainer.train.step import Sums, TrainStep, class_weights


class PhaseWork:
    """Builds the train step and the pipeline of a phase on entry, and releases those of the previous one."""

    stepper: TrainStep

    def __init__(
        self,
        learner: Learner,
        dataset: Dataset,
        spec: RunSpec,
        cluster: Cluster,
        features: Features | None,
        borders: tuple[int, ...] = (),
    ) -> None:
        """features: of the frozen backbone; None disables the cache. borders: see `BatchPrefetcher`."""
        self._learner, self._dataset, self._spec, self._cluster = learner, dataset, spec, cluster
        self._features, self._borders = features, borders
        self._phase: Phase | None = None
        self._blocks: Generator[BatchBlock, None, None] | None = None
        self.feed: BatchPrefetcher | None = None
        """None while the head is fitted."""

    def enter(self, phase: Phase, is_stopped: Callable[[], bool]) -> bool:
        """Build the step and the pipeline of `phase`; return whether it differs from the current phase.

        Raises StoppedError once `is_stopped` returns True.
        """
        if phase is self._phase:
            return False
        self.stop_reading()
        self.feed = None
        if not phase.is_logistic:
            features = self._features_of_training(phase, is_stopped)
            self.stepper, self.feed = build_parts(
                self._learner, self._dataset, self._spec, self._cluster, self._borders, phase, features
            )
        self._phase = phase
        return True

    def blocks(self, step: int) -> Generator[BatchBlock, None, None]:
        """Return the batches from `step` to the end of the phase; prefetch continues during validation."""
        if self._blocks is None and self.feed is not None and self._phase is not None:
            self._blocks = self.feed.blocks(step, self._phase.end_epoch * self._learner.steps_per_epoch)
        if self._blocks is None:
            raise ValueError("The phase has no batches.")
        return self._blocks

    @property
    def uses_xla(self) -> bool:
        """Whether the steps of the phase are compiled with XLA."""
        return self.feed is not None and self.stepper.uses_xla

    def set_block_steps(self, steps: int) -> None:
        """Set the maximum number of steps of the next blocks; see `BatchPrefetcher`."""
        if self.feed is not None:
            self.feed.block_steps = steps

    def stop_reading(self) -> None:
        """Close the input pipeline; `blocks` can then start at any step."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = None

    def fit(self, agreement: HostSync, is_stopped: Callable[[], bool]) -> tuple[list[Sums], Row]:
        """Fit the head by logistic regression on the features of the training images.

        Returns the sums of one epoch of steps, which the fit replaces, and the entries for the history.
        Raises StoppedError once `is_stopped` returns True.
        """
        train, head = self._dataset.train, head_of(self._learner.model)
        features = self._features_now(is_stopped)
        row = None
        if agreement.is_chief:
            row = self._fit_head(features, head.trainable_variables, is_stopped)
        variables = {str(number): each.value for number, each in enumerate(head.trainable_variables)}
        row = agreement.broadcast_variables(variables, row)
        if self._learner.average is not None:
            self._learner.average.reset()
        logits = np.asarray(head(features, training=False), np.float64)
        return self._sums(logits, train.labels), row

    def _fit_head(self, features: NDArray[np.float32], weights: Any, is_stopped: Callable[[], bool]) -> Row:
        """Assign the fitted kernel and bias; return the entries for the history."""
        labels, names = self._dataset.train.labels, self._dataset.class_names
        counts, objective = label_counts(labels, len(names)), objective_of(self._spec.data.labels)
        finetune, choice = self._spec.finetune, self._spec.train.class_weights
        folds = finetune.folds if finetune else 2
        in_loss = class_weights(choice, names, counts, objective, len(labels))
        fit = fit_label_probe if labels.ndim == 2 else fit_probe
        probe = fit(features, labels, in_loss, folds, is_stopped)
        weights[0].assign(probe.kernel)
        weights[1].assign(probe.bias)
        row: Row = {"probe/penalty": probe.penalty}
        if probe.held_out is not None:
            row["probe/cross_validated_accuracy"] = accuracy_of(probe.held_out, labels)
        return row

    def _sums(self, logits: NDArray[np.float64], labels: NDArray[np.int32]) -> list[Sums]:
        losses, hits = (judge_label_logits if labels.ndim == 2 else judge_logits)(logits, labels)
        empty = [Sums(0.0, 0.0, 0.0)] * (self._learner.steps_per_epoch - 1)
        return [Sums(float(losses.sum()), float(np.sum(hits)), float(len(labels))), *empty]

    def _features_of_training(
        self, phase: Phase, is_stopped: Callable[[], bool]
    ) -> NDArray[np.float32] | None:
        """Return the features of the training images, or None if the phase can't train on them."""
        if self._features is None or not phase.is_frozen or self._spec.augment.changes_images:
            return None
        return self._features_now(is_stopped)

    def _features_now(self, is_stopped: Callable[[], bool]) -> NDArray[np.float32]:
        if self._features is None:
            raise ValueError("Logistic regression needs features.")
        self._learner.fill_inference_model()
        return self._features.of(self._dataset.train, is_stopped)
