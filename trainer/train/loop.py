"""Epoch loop: steps, validation, checkpoints, early stopping and recovery from divergence.

Afterwards the learner's inference model has the weights to evaluate and export.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from trainer.augment.transforms import find_view
from trainer.data.dataset import Dataset
from trainer.distributed.devices import Cluster
from trainer.errors import StoppedError
from trainer.spec import RunSpec
from trainer.train.agreement import HostSync, StepFlags
from trainer.train.async_checkpointer import AsyncCheckpointer, CheckpointPolicy
from trainer.train.best import BestEpoch
from trainer.train.checkpoint_manager import CheckpointManager
from trainer.train.clock import Clock, fitting_steps
from trainer.train.features import Features
from trainer.train.history import History, Row
from trainer.train.learner import Learner
from trainer.train.observer import CallReport, Observer
from trainer.train.phase_work import PhaseWork
from trainer.train.phases import Phase
from trainer.train.profile import Profile
from trainer.train.result import TrainResult
from trainer.train.state import (
    TrainState,
    diverged,
    diverged_without_checkpoint,
    out_of_patience,
    score,
)
from trainer.train.step import Sums

_MOST_RECOVERIES = 3

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
        saver: AsyncCheckpointer,
        observer: Observer,
        validate: Validate,
        is_stopped: Callable[[], bool],
        features: Features | None = None,
    ) -> None:
        self.learner, self.spec, self.observer = learner, spec, observer
        self.validate, self.is_stopped = validate, is_stopped
        self.held_out = dataset.held_out.name
        place = saver.folder.parent / "profile" if cluster.is_chief else None
        self.agreement = HostSync(cluster.group)
        # The chief's steps for all: the ends of blocks must be the same on all processes.
        steps = self.agreement.broadcast(spec.train.profiled_steps)
        self.profile = Profile(steps, place, observer.on_message)
        self.work = PhaseWork(learner, dataset, spec, cluster, features, self.profile.borders)
        self._of_fit: Row = {}
        self.standing = TrainState()
        self.history = History(saver.folder.parent)
        self.pace = CheckpointPolicy(spec.train.checkpoint, saver)
        self.keeper = CheckpointManager(learner, saver, self.agreement, observer.on_message)
        self.best = BestEpoch(learner, self.keeper, self.history, spec, self.held_out, observer.on_message)

    def run(self) -> TrainResult:
        """Train to the end, resuming from the newest checkpoint if there is one."""
        self._resume()
        self.profile.begin_run(self.standing.step, self.learner.total_steps)
        try:
            self._train_epochs()
            while not self._keep():
                self._train_epochs()
        finally:
            self.work.stop_reading()
            self.profile.end()
        self.history.close()
        rows, timings, standing = self.history.rows(), self.history.timings, self.standing
        return TrainResult(rows, timings, standing.best_epoch, standing.elapsed_seconds, standing.ended)

    def _train_epochs(self) -> None:
        """Train the remaining epochs, and wait for all checkpoints."""
        while self._epoch() < self.spec.train.epochs and not self.standing.ended:
            if self._train_epoch():
                self._end_epoch()
            else:
                self._recover()
        if not self.keeper.flush():
            self._give_up()

    def _epoch(self) -> int:
        """Return the current epoch, from 0: the one after the last epoch with a row in the history.

        It is not derived from the step: a stop can occur after the last step of an epoch and before its row.
        """
        return len(self.history)

    def _resume(self) -> None:
        self.keeper.prepare()
        record = self.keeper.restore()
        if record is None:
            self.history.replay()
            self._save()  # the state to restore if the first epoch diverges
            return
        self._go_back_to(record)
        self.pace.resumed(self.standing.step)
        if self.spec.train.keeps_best:
            while not self._keep():  # checks at the start, not after hours, whether the best weights are lost
                self.pace.resumed(self.standing.step)
        self.history.replay()
        self.observer.on_message(f"continuing after step {self.standing.step} of {self.learner.total_steps}")

    def _train_epoch(self) -> bool:
        """Run the rest of the current epoch; return False if the loss is not finite."""
        epoch = self._epoch()
        phase = self.learner.phase_of(epoch)
        if phase.is_logistic:
            # An interrupted fit is repeated from the beginning.
            self.standing.step = epoch * self.learner.steps_per_epoch
        if self.standing.step == epoch * self.learner.steps_per_epoch:
            self.standing.begin_epoch()
        try:
            sums = self._begin(phase)
        except StoppedError:
            self._stop()  # during the computation of features
        if not phase.is_logistic:
            return self._do_steps(epoch)
        self.standing.add(sums)
        self.observer.on_call(self._report(epoch))
        return self.standing.is_finite()

    def _begin(self, phase: Phase) -> list[Sums]:
        """Build the step and the pipeline of a new phase, or fit its head and return the sums of the fit."""
        if self.work.enter(phase, self.is_stopped) and self.work.uses_xla:
            self.observer.on_message("XLA compiles the step first, which may take two minutes")
        self.clock, self._of_fit = Clock(self.work.feed, self.standing), {}
        sums: list[Sums] = []
        if phase.is_logistic:
            sums, self._of_fit = self.work.fit(self.agreement, self.is_stopped)
        return sums

    def _do_steps(self, epoch: int) -> bool:
        steps = self.learner.steps_per_epoch
        view = find_view(self.spec.augment, self.spec.data.image_size, epoch, self.spec.train.epochs)
        blocks = self.work.blocks(self.standing.step)
        while self.standing.step < (epoch + 1) * steps:
            block = next(blocks)  # no block crosses the end of an epoch
            self.pace.make_room(self.standing.step + block.steps)
            with self.profile.around(block):
                started = time.perf_counter()
                self.standing.add(self.work.stepper.run(block, view))
                wanted = self._block_steps(block.steps, time.perf_counter() - started)
            if not self.standing.is_finite():
                return False
            self.observer.on_call(self._report(epoch))
            is_due = self.pace.is_due(self.standing.step)
            signs = self.agreement.sync_flags(StepFlags(self.is_stopped(), is_due, wanted))
            self.work.set_block_steps(signs.block_steps)
            if signs.is_stopped:
                self._stop()
            if signs.is_due and self.standing.step < (epoch + 1) * steps:
                self._save(within_epoch=True)
        return True

    def _block_steps(self, steps: int, seconds: float) -> int:
        chosen = self.spec.train.steps_per_call
        wanted = fitting_steps(steps, seconds) if chosen == "auto" else chosen
        return min(wanted, self.pace.most_steps or wanted)

    def _report(self, epoch: int) -> CallReport:
        place = (epoch + 1, self.spec.train.epochs, self.standing.step, self.learner.total_steps)
        return CallReport(*place, *self.standing.means(), *self.clock.rates(self.standing))

    def _end_epoch(self) -> None:
        epoch = self._epoch() + 1
        try:
            timing, row = self._timing(), self._row(epoch)  # the rates exclude validation
        except StoppedError:
            self._stop()  # the steps are saved, and the resumed run validates and adds the row
        if not self._is_sound(row):
            self._recover()
            return
        self.standing.elapsed_seconds += self.agreement.broadcast(self.clock.seconds())
        self.history.add(row, timing)
        self._judge(row, epoch)
        self.history.write()
        self._save()
        self.observer.on_epoch(row | timing, self.spec.train.epochs)

    def _is_sound(self, row: Row) -> bool:
        """Return whether the weights and the held-out loss are finite: no loss follows the last update."""
        return math.isfinite(row.get(f"{self.held_out}/loss", 0.0)) and self.learner.is_finite()

    def _row(self, epoch: int) -> Row:
        loss, accuracy = self.standing.means()
        row: Row = {
            "epoch": epoch,
            "step": self.standing.step,
            "learning_rate": self.learner.phase_of(epoch - 1).learning_rate(),
            "train/loss": loss,
            "train/accuracy": accuracy,
        } | self._of_fit
        every, last = self.spec.train.validate_every_epochs, self.spec.train.epochs
        if epoch % every == 0 or epoch == last:
            self.learner.fill_inference_model()
            row |= {f"{self.held_out}/{name}": value for name, value in self.validate().items()}
        return row

    def _timing(self) -> Row:
        rate, wait = self.clock.rates(self.standing)
        return {"seconds": self.clock.seconds(), "images_per_second": rate, "wait_share": wait}

    def _judge(self, row: Row, epoch: int) -> None:
        """Update the best epoch, and decide whether training ends early."""
        stopping, standing = self.spec.train.early_stopping, self.standing
        value = score(row, self.held_out, stopping)
        least = stopping.min_change if stopping else 0.0
        if value is not None and value > standing.best_score + least:
            standing.best_epoch, standing.best_score = epoch, value
            self.keeper.save_best(epoch)
        if epoch == self.spec.train.epochs:
            return
        last = self.learner.phases[-1].first_epoch
        if value is not None and out_of_patience(standing, epoch, stopping, last):
            standing.ended = f"no better {self.held_out} result since epoch {standing.best_epoch}"
        budget = self.spec.train.time_budget_seconds
        if budget is not None and standing.elapsed_seconds >= budget:
            standing.ended = f"the time budget of {budget:g} s is used up"

    def _recover(self) -> None:
        """Restore the last good epoch and halve the rate; raise DivergedError after three recoveries."""
        epoch, recoveries = self._epoch() + 1, self.standing.recoveries + 1
        if recoveries > _MOST_RECOVERIES:
            raise diverged(epoch, _MOST_RECOVERIES, self.spec.optimizer)
        elapsed = self.standing.elapsed_seconds + self.agreement.broadcast(self.clock.seconds())
        self._resume_quietly()
        self.standing.recoveries, self.standing.elapsed_seconds = recoveries, elapsed
        self.learner.rate_scale.assign(0.5**recoveries)
        self.observer.on_message(
            f"the loss is not a number in epoch {epoch}: back to the end of epoch {self._epoch()} "
            f"with half the learning rate ({recoveries} of {_MOST_RECOVERIES})"
        )
        self._save()

    def _resume_quietly(self) -> None:
        self.keeper.flush()
        record = self.keeper.restore(whole_epochs=True)
        if record is None:
            raise diverged_without_checkpoint(self.keeper.folder, self.spec.optimizer)
        self._go_back_to(record)
        self.keeper.forget_parts()

    def _go_back_to(self, record: Mapping[str, Any]) -> None:
        self.standing = TrainState.from_record(record["standing"])
        self.history.restore(record["history"])
        self.work.stop_reading()

    def _stop(self) -> NoReturn:
        self._save(within_epoch=True, is_last=True)
        if not self.keeper.flush():
            self._give_up()
        raise StoppedError(f"{self._where()}; the checkpoint is safe.")

    def _give_up(self) -> NoReturn:
        raise StoppedError(
            f"{self._where()}, before its checkpoint was complete. {self.keeper.resume_advice()} "
            f"A longer train.grace_seconds may help.",
            received=f"{self.spec.train.grace_seconds:g} s",
        )

    def _where(self) -> str:
        return f"Stopped on request after step {self.standing.step} of {self.learner.total_steps}"

    def _save(self, within_epoch: bool = False, is_last: bool = False) -> None:
        more = self.clock.seconds() if within_epoch else 0.0
        self.keeper.save(self.standing, self.history, more, is_last)
        self.pace.saved(self.standing.step)

    def _keep(self) -> bool:
        """Fill the inference model with the weights to keep; return False if training went back for them."""
        record = self.best.fill(self.standing)
        if record is None:
            return True
        self._go_back_to(record)
        self.history.replay()
        return False
