"""Recovery from a NaN loss: training resumes from the last good epoch at half the learning rate, or ends."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from helpers.small_training import SMALL, Recorder, dark_and_light, do_train, learner_for, values

from trainer.data.dataset import Dataset
from trainer.errors import DivergedError, StoppedError
from trainer.spec import load_spec
from trainer.training import CallReport
from trainer.training.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def test_loss_that_is_not_finite_ends_after_three_recoveries(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    spec = load_spec(settings=[*SMALL, "optimizer={name: sgd, learning_rate: 1e30}"])
    with pytest.raises(DivergedError, match=r"--set optimizer\.learning_rate=0\.05\. Received: 1e\+30"):
        do_train(spec, dataset, tmp_path, recorder)
    assert ["half the learning rate" in message for message in recorder.messages] == [True] * 3


def test_training_continues_from_the_last_good_epoch_with_half_the_rate(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(settings=[*SMALL, "optimizer={name: sgd, learning_rate: 0.01}"])
    recorder, learner = Recorder(), learner_for(spec, dataset)

    class Poison(Recorder):
        """Recorder that sets an absurd learning rate once, in the second epoch."""

        def on_call(self, report: CallReport) -> None:
            super().on_call(report)
            if report.epoch == 2 and not self.messages:
                learner.rate_scale.assign(1e38)

    recorder = Poison()
    _, result = do_train(spec, dataset, tmp_path, recorder, learner=learner)
    assert len(recorder.messages) == 1
    assert "continues from the end of epoch 1" in recorder.messages[0]
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.history[0]["learning_rate"] == pytest.approx(0.01)
    assert result.history[1]["learning_rate"] == pytest.approx(0.005)
    assert all(np.isfinite(value).all() for value in values(learner).values())


def test_loss_that_is_not_finite_without_checkpoints_ends_with_a_suggested_rate(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(
        settings=[*SMALL, "train.steps_per_call=1", "optimizer={name: sgd, learning_rate: 1e30}"]
    )

    class Remove(Recorder):
        """Recorder that removes the initial checkpoint after the first step."""

        def on_call(self, report: CallReport) -> None:
            super().on_call(report)
            while not (paths := list_checkpoints(tmp_path / "checkpoints")) and len(self.calls) == 1:
                time.sleep(0.01)  # until the checkpoint is saved
            for path in paths:
                path.unlink()

    pattern = r"no complete checkpoint.*--set optimizer\.learning_rate=0\.05\. Received: 1e\+30"
    with pytest.raises(DivergedError, match=pattern):
        do_train(spec, dataset, tmp_path, Remove())


def test_recovery_ignores_the_checkpoints_within_the_diverged_epoch(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(
        settings=[*SMALL, "train.steps_per_call=1", "optimizer={name: sgd, learning_rate: 0.01}"]
    )
    for stop_at in (8, 9):  # twice within the second epoch
        with pytest.raises(StoppedError):
            do_train(spec, dataset, tmp_path, stop_at=stop_at)
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names[-2:] == ["step-00000008-part.npz", "step-00000009-part.npz"]
    assert "step-00000006.npz" in names
    learner = learner_for(spec, dataset)

    class Poison(Recorder):
        def on_call(self, report: CallReport) -> None:
            super().on_call(report)
            if len(self.messages) == 1:  # the only message so far: the run continues
                learner.rate_scale.assign(1e38)

    recorder = Poison()
    _, result = do_train(spec, dataset, tmp_path, recorder, learner=learner)
    assert "continues from the end of epoch 1" in recorder.messages[1]
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert not [path for path in list_checkpoints(tmp_path / "checkpoints") if "part" in path.name]
