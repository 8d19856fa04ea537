"""Epoch loop: steps, validation, checkpoints, early stopping and recovery from divergence.

Afterwards the learner's inference model has the weights to evaluate and export.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from trainer.augment.transforms import find_view
from trainer.data.dataset import Dataset
from trainer.distributed.devices import Cluster
from trainer.errors import StoppedError
from trainer.spec import RunSpec
from trainer.training.checkpoint_manager import (
    AsyncCheckpointer,
    BestEpoch,
    CheckpointManager,
    CheckpointPolicy,
)
from trainer.training.features import Features
from trainer.training.history import Clock, History, Row, TrainResult, fitting_steps
from trainer.training.host_sync import HostSync, StepFlags
from trainer.training.learner import Learner
from trainer.training.phase_work import PhaseWork
from trainer.training.phases import Phase
from trainer.training.profile import Profile
from trainer.training.state import (
    TrainState,
    error_of_divergence,
    error_without_checkpoint,
    is_out_of_patience,
    score,
)
from trainer.training.step import Sums


@dataclass(frozen=True)
class CallReport:
    """Progress after one call of the compiled steps."""

    epoch: int
    """Counted from 1."""
    epochs: int
    step: int
    """Steps done in all epochs."""
    total_steps: int
    loss: float
    """Mean of the epoch so far, on augmented images."""
    accuracy: float
    images_per_second: float
    """Mean of the epoch so far."""
    wait_share: float
    """Share of the epoch's time spent waiting for data, in 0..1."""


class Observer(Protocol):
    """Receives progress; its methods must return fast and never raise."""

    def on_call(self, report: CallReport) -> None:
        """Called after each call of the compiled steps."""

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Called after each epoch, with the row that is written to history.jsonl and its timings."""

    def on_message(self, message: str) -> None:
        """Called with a sentence for the user."""


_MAX_RECOVERIES = 3

Validate = Callable[[], dict[str, float]]
"""Evaluates the learner's inference model on the held-out split: {'loss': .., 'accuracy': ..}.

May raise StoppedError on a requested stop; the loop then saves a checkpoint and stops.
"""


class Loop:
    """State of one training; `run` executes it."""

    def __init__(
        self,
        learner: Learner,
        dataset: Dataset,
        spec: RunSpec,
        cluster: Cluster,
        checkpointer: AsyncCheckpointer,
        observer: Observer,
        validate: Validate,
        is_stopped: Callable[[], bool],
        features: Features | None = None,
    ) -> None:
        self.learner, self.spec, self.observer = learner, spec, observer
        self.validate, self.is_stopped = validate, is_stopped
        self.held_out = dataset.held_out.name
        profile_folder = checkpointer.folder.parent / "profile" if cluster.is_chief else None
        self.sync = HostSync(cluster.group)
        # The chief's steps for all: the ends of blocks must be the same on all processes.
        steps = self.sync.broadcast(spec.train.profiled_steps)
        self.profile = Profile(steps, profile_folder, observer.on_message)
        self.phase_work = PhaseWork(learner, dataset, spec, cluster, features, self.profile.boundaries)
        self._fit_row: Row = {}
        self.state = TrainState()
        self.history = History(checkpointer.folder.parent)
        self.policy = CheckpointPolicy(spec.train.checkpoint, checkpointer)
        self.checkpoints = CheckpointManager(learner, checkpointer, self.sync, observer.on_message)
        self.best = BestEpoch(
            learner, self.checkpoints, self.history, spec, self.held_out, observer.on_message
        )

    def run(self) -> TrainResult:
        """Train to the end, resuming from the newest checkpoint if there is one."""
        self._resume()
        self.profile.begin_run(self.state.step, self.learner.total_steps)
        try:
            self._train_epochs()
            while not self._fill_inference_model():
                self._train_epochs()
        finally:
            self.phase_work.stop_reading()
            self.profile.end()
        self.history.close()
        rows, timings, state = self.history.rows(), self.history.timings, self.state
        return TrainResult(rows, timings, state.best_epoch, state.elapsed_seconds, state.ended)

    def _train_epochs(self) -> None:
        """Train the remaining epochs, and wait for all checkpoints."""
        while self._epoch() < self.spec.train.epochs and not self.state.ended:
            if self._train_epoch():
                self._end_epoch()
            else:
                self._recover()
        if not self.checkpoints.flush():
            self._raise_incomplete()

    def _epoch(self) -> int:
        """Return the current epoch, from 0: the one after the last epoch with a row in the history.

        It is not derived from the step: a stop can occur after the last step of an epoch and before its row.
        """
        return len(self.history)

    def _resume(self) -> None:
        self.checkpoints.prepare()
        record = self.checkpoints.restore()
        if record is None:
            self.history.replay()
            self._save()  # the state to restore if the first epoch diverges
            return
        self._apply_record(record)
        self.policy.record_resume(self.state.step)
        if self.spec.train.keeps_best:
            while not self._fill_inference_model():  # reports lost weights at the start, not after hours
                self.policy.record_resume(self.state.step)
        self.history.replay()
        self.observer.on_message(f"Resuming after step {self.state.step} of {self.learner.total_steps}")

    def _train_epoch(self) -> bool:
        """Run the rest of the current epoch; return False if the loss is not finite."""
        epoch = self._epoch()
        phase = self.learner.phase_of(epoch)
        if phase.is_logistic:
            # An interrupted fit is repeated from the beginning.
            self.state.step = epoch * self.learner.steps_per_epoch
        if self.state.step == epoch * self.learner.steps_per_epoch:
            self.state.begin_epoch()
        try:
            sums = self._enter_phase(phase)
        except StoppedError:
            self._stop()  # during the computation of features
        if not phase.is_logistic:
            return self._run_steps(epoch)
        self.state.add(sums)
        self.observer.on_call(self._build_report(epoch))
        return self.state.is_finite()

    def _enter_phase(self, phase: Phase) -> list[Sums]:
        """Build the step and the pipeline of a new phase, or fit its head and return the sums of the fit."""
        if self.phase_work.enter(phase, self.is_stopped) and self.phase_work.uses_xla:
            self.observer.on_message("Compiling the step with XLA, which may take two minutes")
        self.clock, self._fit_row = Clock(self.phase_work.prefetcher, self.state), {}
        sums: list[Sums] = []
        if phase.is_logistic:
            sums, self._fit_row = self.phase_work.fit(self.sync, self.is_stopped)
        return sums

    def _run_steps(self, epoch: int) -> bool:
        steps = self.learner.steps_per_epoch
        view = find_view(self.spec.augment, self.spec.data.image_size, epoch, self.spec.train.epochs)
        blocks = self.phase_work.blocks(self.state.step)
        while self.state.step < (epoch + 1) * steps:
            block = next(blocks)  # no block crosses the end of an epoch
            self.policy.wait_for_saves(self.state.step + block.steps)
            with self.profile.around(block):
                started = time.perf_counter()
                self.state.add(self.phase_work.train_step.run(block, view))
                next_steps = self._block_steps(block.steps, time.perf_counter() - started)
            if not self.state.is_finite():
                return False
            self.observer.on_call(self._build_report(epoch))
            is_due = self.policy.is_due(self.state.step)
            flags = self.sync.sync_flags(StepFlags(self.is_stopped(), is_due, next_steps))
            self.phase_work.set_block_steps(flags.block_steps)
            if flags.is_stopped:
                self._stop()
            if flags.is_due and self.state.step < (epoch + 1) * steps:
                self._save(within_epoch=True)
        return True

    def _block_steps(self, steps: int, seconds: float) -> int:
        setting = self.spec.train.steps_per_call
        next_steps = fitting_steps(steps, seconds) if setting == "auto" else setting
        return min(next_steps, self.policy.max_steps or next_steps)

    def _build_report(self, epoch: int) -> CallReport:
        position = (epoch + 1, self.spec.train.epochs, self.state.step, self.learner.total_steps)
        return CallReport(*position, *self.state.means(), *self.clock.rates(self.state))

    def _end_epoch(self) -> None:
        epoch = self._epoch() + 1
        try:
            timing, row = self._build_timing(), self._build_row(epoch)  # the rates exclude validation
        except StoppedError:
            self._stop()  # the steps are saved, and the resumed run validates and adds the row
        if not self._is_finite(row):
            self._recover()
            return
        self.state.elapsed_seconds += self.sync.broadcast(self.clock.seconds())
        self.history.add(row, timing)
        self._update_best(row, epoch)
        self.history.write()
        self._save()
        self.observer.on_epoch(row | timing, self.spec.train.epochs)

    def _is_finite(self, row: Row) -> bool:
        """Return whether the weights and the held-out loss are finite: no loss follows the last update."""
        return math.isfinite(row.get(f"{self.held_out}/loss", 0.0)) and self.learner.is_finite()

    def _build_row(self, epoch: int) -> Row:
        loss, accuracy = self.state.means()
        row: Row = {
            "epoch": epoch,
            "step": self.state.step,
            "learning_rate": self.learner.phase_of(epoch - 1).learning_rate(),
            "train/loss": loss,
            "train/accuracy": accuracy,
        } | self._fit_row
        every, last = self.spec.train.validate_every_epochs, self.spec.train.epochs
        if epoch % every == 0 or epoch == last:
            self.learner.fill_inference_model()
            row |= {f"{self.held_out}/{name}": value for name, value in self.validate().items()}
        return row

    def _build_timing(self) -> Row:
        rate, wait = self.clock.rates(self.state)
        return {"seconds": self.clock.seconds(), "images_per_second": rate, "wait_share": wait}

    def _update_best(self, row: Row, epoch: int) -> None:
        """Update the best epoch, and decide whether training ends early."""
        stopping, state = self.spec.train.early_stopping, self.state
        value = score(row, self.held_out, stopping)
        min_change = stopping.min_change if stopping else 0.0
        if value is not None and value > state.best_score + min_change:
            state.best_epoch, state.best_score = epoch, value
            self.checkpoints.save_best(epoch)
        if epoch == self.spec.train.epochs:
            return
        first_of_last_phase = self.learner.phases[-1].first_epoch
        if value is not None and is_out_of_patience(state, epoch, stopping, first_of_last_phase):
            state.ended = f"no better {self.held_out} result since epoch {state.best_epoch}"
        budget = self.spec.train.time_budget_seconds
        if budget is not None and state.elapsed_seconds >= budget:
            state.ended = f"the time budget of {budget:g} s is used up"

    def _recover(self) -> None:
        """Restore the last good epoch and halve the rate; raise DivergedError after three recoveries."""
        epoch, recoveries = self._epoch() + 1, self.state.recoveries + 1
        if recoveries > _MAX_RECOVERIES:
            raise error_of_divergence(epoch, _MAX_RECOVERIES, self.spec.optimizer)
        elapsed = self.state.elapsed_seconds + self.sync.broadcast(self.clock.seconds())
        self._restore_whole_epoch()
        self.state.recoveries, self.state.elapsed_seconds = recoveries, elapsed
        self.learner.rate_scale.assign(0.5**recoveries)
        self.observer.on_message(
            f"The loss is not a finite number in epoch {epoch}: training continues from the end of epoch "
            f"{self._epoch()} with half the learning rate ({recoveries} of {_MAX_RECOVERIES})"
        )
        self._save()

    def _restore_whole_epoch(self) -> None:
        self.checkpoints.flush()
        record = self.checkpoints.restore(whole_epochs=True)
        if record is None:
            raise error_without_checkpoint(self.checkpoints.folder, self.spec.optimizer)
        self._apply_record(record)
        self.checkpoints.delete_partial()

    def _apply_record(self, record: Mapping[str, Any]) -> None:
        self.state = TrainState.from_record(record["standing"])
        self.history.restore(record["history"])
        self.phase_work.stop_reading()

    def _stop(self) -> NoReturn:
        self._save(within_epoch=True, is_last=True)
        if not self.checkpoints.flush():
            self._raise_incomplete()
        raise StoppedError(f"{self._stop_message()}; the checkpoint is safe.")

    def _raise_incomplete(self) -> NoReturn:
        raise StoppedError(
            f"{self._stop_message()}, before its checkpoint was complete. {self.checkpoints.resume_advice()}",
            "A longer train.grace_seconds may help.",
            received=f"{self.spec.train.grace_seconds:g} s",
        )

    def _stop_message(self) -> str:
        return f"Stopped on request after step {self.state.step} of {self.learner.total_steps}"

    def _save(self, within_epoch: bool = False, is_last: bool = False) -> None:
        extra_seconds = self.clock.seconds() if within_epoch else 0.0
        self.checkpoints.save(self.state, self.history, extra_seconds, is_last)
        self.policy.record_save(self.state.step)

    def _fill_inference_model(self) -> bool:
        """Fill the inference model with the weights to keep; return False if training went back for them."""
        record = self.best.fill(self.state)
        if record is None:
            return True
        self._apply_record(record)
        self.history.replay()
        return False


def train(
    learner: Learner,
    dataset: Dataset,
    spec: RunSpec,
    cluster: Cluster,
    checkpointer: AsyncCheckpointer,
    observer: Observer,
    validate: Validate,
    is_stopped: Callable[[], bool] = lambda: False,
    features: Features | None = None,
) -> TrainResult:
    """Train `learner` on `dataset`, checkpointing with `checkpointer`; see `Loop`.

    features: those of a backbone that is frozen at first; None without such a backbone, or to disable the
    feature cache.

    Raises DivergedError, the error of a failed save, and StoppedError once `is_stopped` returns True and the
    checkpoint is complete.
    """
    return Loop(learner, dataset, spec, cluster, checkpointer, observer, validate, is_stopped, features).run()
