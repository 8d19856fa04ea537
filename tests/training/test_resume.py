"""Resuming after a stop or crash: bit-identical results, and errors of lost checkpoints."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_training import SMALL, Recorder, dark_and_light, do_train, learner_for, untimed, values

from trainer.data.dataset import Dataset
from trainer.distributed.devices import find_cluster
from trainer.errors import StoppedError
from trainer.evaluate.evaluator import Evaluator
from trainer.spec import load_spec
from trainer.training import AsyncCheckpointer, CallReport, Learner, TrainResult, train
from trainer.training.checkpoint import list_checkpoints

EXACT = [
    *SMALL,
    "augment={flip: horizontal, crop: {size: 12}, brightness: 0.2, hue: 0.05}",
    "augment.noise=0.05",
    "augment.erase=0.3",
    "augment.mixup=0.3",
    "augment.cutmix=0.3",
    "augment.rotate_degrees=10.0",
    "model.stochastic_depth=0.2",
    "optimizer={name: adamw, weight_decay: 0.05, schedule: cosine, warmup_epochs: 0.5}",
    "train.ema_decay=0.9",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, TrainResult]:
    """Return an uninterrupted training."""
    return do_train(load_spec(settings=EXACT), dataset, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def step_by_step(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, TrainResult]:
    """Return an uninterrupted training with one step per call."""
    spec = load_spec(settings=[*EXACT, "train.steps_per_call=1"])
    return do_train(spec, dataset, tmp_path_factory.mktemp("singly"))


def test_stop_during_validation_does_not_wait_for_more_images(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=[*SMALL, "train.epochs=2"])
    whole, result = do_train(spec, dataset, tmp_path / "whole")
    learner = learner_for(spec, dataset)
    evaluator = Evaluator(learner.inference_model)
    checkpointer = AsyncCheckpointer(tmp_path / "stopped" / "checkpoints")
    arguments = (dataset, spec, find_cluster(), checkpointer, Recorder())
    with checkpointer, pytest.raises(StoppedError, match="the checkpoint is safe"):
        train(learner, *arguments, lambda: evaluator.loss_and_accuracy(dataset.held_out, lambda: True))
    assert (tmp_path / "stopped" / "history.jsonl").read_text() == ""
    again, resumed = do_train(spec, dataset, tmp_path / "stopped")
    assert untimed(resumed.history) == untimed(result.history)
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, values(again)[name], err_msg=name)


@pytest.mark.parametrize(
    ("stored", "advice"),
    [
        (1, "Restart to resume from step 0."),
        (0, "No checkpoint is complete; a restart begins with the first step."),
    ],
)
def test_stop_with_an_incomplete_save_names_the_step_that_a_restart_resumes_from(
    dataset: Dataset, tmp_path: Path, stored: int, advice: str
) -> None:
    spec = load_spec(settings=[*SMALL, "train.steps_per_call=1", "train.grace_seconds=3"])
    learner, recorder, release = learner_for(spec, dataset), Recorder(), threading.Event()

    def store() -> None:
        if len(list_checkpoints(tmp_path)) > stored:
            release.wait(60)

    checkpointer = AsyncCheckpointer(tmp_path, store, is_overdue=lambda: bool(recorder.calls))
    try:
        with checkpointer, pytest.raises(StoppedError) as stopped:
            train(
                learner, dataset, spec, find_cluster(), checkpointer, recorder,
                dict, lambda: bool(recorder.calls) and checkpointer.safe_step == (0 if stored else None),
            )  # fmt: skip
    finally:
        release.set()
    message = str(stopped.value)
    assert "before its checkpoint was complete" in message
    assert advice in message
    assert message.endswith("A longer train.grace_seconds may help. Received: 3 s")


def test_stopped_run_resumes_bit_identically(
    dataset: Dataset, whole: tuple[Learner, TrainResult], tmp_path: Path
) -> None:
    spec = load_spec(settings=EXACT)
    for stop_at in (4, 6, 13):  # within an epoch, at the end of one, and within a later one
        with pytest.raises(StoppedError):
            do_train(spec, dataset, tmp_path / "stopped", stop_at=stop_at)
    stopped, again = do_train(spec, dataset, tmp_path / "stopped")
    for name, value in values(whole[0]).items():
        np.testing.assert_array_equal(value, values(stopped)[name], err_msg=name)
    assert untimed(again.history) == untimed(whole[1].history)


class Crash(Recorder):
    """Recorder that ends training at a step, as a crash does, without saving a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_call(self, report: CallReport) -> None:
        if report.step >= self.step:
            raise KeyboardInterrupt


def test_crash_loses_only_the_steps_since_the_last_checkpoint(
    dataset: Dataset, step_by_step: tuple[Learner, TrainResult], tmp_path: Path
) -> None:
    whole, result = step_by_step
    often = load_spec(settings=[*EXACT, "train.steps_per_call=1", "train.checkpoint.every_steps=4"])
    for crash_at, resumed in ((5, 0), (11, 4)):
        recorder = Crash(crash_at)
        with pytest.raises(KeyboardInterrupt):
            do_train(often, dataset, tmp_path / "crashed", recorder)
        assert recorder.messages == ([f"Resuming after step {resumed} of 18"] if resumed else [])
    crashed, again = do_train(often, dataset, tmp_path / "crashed")
    assert untimed(again.history) == untimed(result.history)
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, values(crashed)[name], err_msg=name)


def test_result_does_not_depend_on_the_steps_per_call(
    dataset: Dataset, step_by_step: tuple[Learner, TrainResult], tmp_path: Path
) -> None:
    by_five, _ = do_train(load_spec(settings=[*EXACT, "train.steps_per_call=5"]), dataset, tmp_path)
    for name, value in values(step_by_step[0]).items():
        np.testing.assert_array_equal(value, values(by_five)[name], err_msg=name)


@pytest.mark.engine
def test_checkpoint_without_optimizer_moments_changes_the_result(
    dataset: Dataset, whole: tuple[Learner, TrainResult], tmp_path: Path
) -> None:
    spec = load_spec(settings=EXACT)
    with pytest.raises(StoppedError):
        do_train(spec, dataset, tmp_path / "stopped", stop_at=4)
    learner = learner_for(spec, dataset)
    assert not [name for name in learner.variables() if "seed" in name]
    path = list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    names = [name for name in arrays if name.startswith("optimizer/") and arrays[name].ndim]
    assert names
    for name in names:
        arrays[name] = np.zeros_like(arrays[name])
    np.savez(path, **arrays)
    do_train(spec, dataset, tmp_path / "stopped", learner=learner)
    changed = [
        name for name, value in values(whole[0]).items() if not np.array_equal(value, values(learner)[name])
    ]
    # The moments differ in any case; other variables must differ too.
    assert set(changed) - set(names)


BEST = [
    *SMALL,
    "train.keep=best",
    "train.epochs=4",
    "train.early_stopping={monitor: loss, patience_epochs: 9}",
]
"""Monitors the loss, which falls for some epochs."""


def damage(path: Path, how: str) -> None:
    """Remove, truncate or corrupt a file."""
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        offset = data.index(b"NUMPY") + len(data) // 2
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, TrainResult]:
    return do_train(load_spec(settings=BEST), dataset, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def stopped_in_the_fourth_epoch(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder, for copying only, of a training stopped after its best epoch, the third."""
    folder = tmp_path_factory.mktemp("fourth")
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=BEST), dataset, folder, stop_at=20)
    return folder


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_lost_best_weights_are_recomputed_from_an_earlier_checkpoint(
    how: str,
    dataset: Dataset,
    undisturbed: tuple[Learner, TrainResult],
    stopped_in_the_fourth_epoch: Path,
    tmp_path: Path,
) -> None:
    whole, result = undisturbed
    shutil.copytree(stopped_in_the_fourth_epoch, tmp_path, dirs_exist_ok=True)
    best = int(max((tmp_path / "checkpoints").glob("best-*.npz")).stem.partition("-")[2])
    assert best == 3
    damage(tmp_path / "checkpoints" / f"best-{best:06d}.npz", how)
    recorder = Recorder()
    learner, again = do_train(load_spec(settings=BEST), dataset, tmp_path, recorder)
    problem = "missing" if how == "missing" else "damaged"
    assert any(f"best-{best:06d}.npz is {problem}" in message for message in recorder.messages)
    assert any(
        f"epoch {best}, the best so far, are lost: training continues from step" in m
        for m in recorder.messages
    )
    assert untimed(again.history) == untimed(result.history)
    assert again.best_epoch == result.best_epoch
    for name, variable in whole.inference_variables().items():
        np.testing.assert_array_equal(variable, learner.inference_variables()[name], err_msg=name)


def test_best_weights_lost_during_training_are_noticed_at_its_end(
    dataset: Dataset, undisturbed: tuple[Learner, TrainResult], tmp_path: Path
) -> None:
    class Remove(Recorder):
        """Recorder that corrupts the best weights once the last epoch is complete."""

        def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
            super().on_epoch(row, epochs)
            if row["epoch"] == epochs and not self.messages:
                while not (tmp_path / "checkpoints" / f"step-{row['step']:08d}.npz").exists():
                    time.sleep(0.01)  # until the last checkpoint is saved
                for path in (tmp_path / "checkpoints").glob("best-*.npz"):
                    path.write_bytes(b"zz")

    recorder = Remove()
    _, again = do_train(load_spec(settings=BEST), dataset, tmp_path, recorder)
    assert any("are lost: epoch" in message for message in recorder.messages)
    assert untimed(again.history) == untimed(undisturbed[1].history)
    assert again.best_epoch == 4  # the only epoch whose weights were available


def test_next_best_epoch_is_used_if_best_weights_and_earlier_checkpoints_are_lost(
    dataset: Dataset, tmp_path: Path
) -> None:
    settings = [*SMALL, "train.keep=best", "train.epochs=8"]
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=settings), dataset, tmp_path, stop_at=20)
    bests = sorted((tmp_path / "checkpoints").glob("best-*.npz"))
    for best in bests:
        best.write_bytes(b"zz")
    recorder = Recorder()
    _, result = do_train(load_spec(settings=settings), dataset, tmp_path, recorder)
    assert any("is damaged" in message for message in recorder.messages)
    assert len(result.history) == 8
    assert result.best_epoch
    assert (tmp_path / "checkpoints" / f"damaged-{bests[-1].name}").exists()
