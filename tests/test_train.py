"""The training loop: its arithmetic, its exactness, and its reasons to stop or go back."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.augment import MIX_DRAWS, draw_numbers
from trainer.checkpoint import list_checkpoints, restore_newest, save_checkpoint, take_snapshot
from trainer.cluster import choose_precision, choose_xla, find_cluster
from trainer.data.batches import batch_indices, steps_per_epoch
from trainer.data.dataset import Dataset, Split
from trainer.data.items import Item
from trainer.evaluate import Evaluator, predict_splits
from trainer.exits import DivergedError, StoppedError, TemporaryError, UsageError
from trainer.mix import mix_images
from trainer.spec import RunSpec, load_spec
from trainer.train import CallReport, Learner, Saver, TrainResult, build_learner, train
from trainer.train.average import WeightAverage
from trainer.train.feed import Feed
from trainer.train.step import Stepper, class_weights

SMALL = [
    "data.image_size=16",
    "model={family: residual, stem_filters: 4, filters: [8], blocks: [1], dropout: 0.3}",
    "train.epochs=3",
    "train.global_batch_size=8",
    "train.deterministic=true",
]


class Pixels:
    """Pixels in memory, as the cache holds them."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def take(self, indices: np.ndarray) -> np.ndarray:
        return self.array[indices]


class Recorder:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.calls: list[CallReport] = []
        self.rows: list[Mapping[str, Any]] = []
        self.messages: list[str] = []

    def on_call(self, report: CallReport) -> None:
        self.calls.append(report)

    def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        self.rows.append(row)

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def split(name: str, count: int, seed: int) -> Split:
    """Bright pictures and dark ones, with noise."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int32)
    images = rng.integers(0, 100, (count, 16, 16, 3)) + 120 * labels[:, None, None, None]
    items = tuple(
        Item(f"{name}/{index}.png", "dark" if label == 0 else "light", name, Path("nowhere"))
        for index, label in enumerate(labels)
    )
    return Split(name, items, labels, Pixels(images.astype(np.uint8)))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    splits = {"train": split("train", 44, 0), "validation": split("validation", 12, 1)}
    return Dataset(("dark", "light"), splits, rejected=(), summary={}, digest="0", warnings=())


def learner_for(spec: RunSpec, dataset: Dataset) -> Learner:
    steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
    return build_learner(spec, 2, steps, find_cluster())


def do_train(
    spec: RunSpec,
    dataset: Dataset,
    folder: Path,
    recorder: Recorder | None = None,
    stop_at: int | None = None,
    learner: Learner | None = None,
) -> tuple[Learner, TrainResult]:
    recorder = recorder or Recorder()
    learner = learner or learner_for(spec, dataset)
    evaluator = Evaluator(learner.inference_model)

    def is_stopped() -> bool:
        return stop_at is not None and recorder.calls[-1].step >= stop_at

    with Saver(folder / "checkpoints") as saver:
        result = train(
            learner, dataset, spec, find_cluster(), saver, recorder,
            lambda: evaluator.loss_and_accuracy(dataset.held_out), is_stopped,
        )  # fmt: skip
    return learner, result


def values(learner: Learner) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in learner.variables().items()}


def untimed(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    timings = ("images_per_second", "wait_share", "seconds")
    return [{key: value for key, value in row.items() if key not in timings} for row in history]


def test_a_step_is_the_step_that_keras_makes(dataset: Dataset) -> None:
    spec = load_spec(
        settings=[*SMALL, "model={family: plain, filters: [4], dense_units: [8]}", "optimizer.name=rmsprop"]
    )
    learner, twin = learner_for(spec, dataset), learner_for(spec, dataset)
    rows = batch_indices(spec.seed, 0, 44, 8)
    images, labels = dataset.train.pixels.take(rows), dataset.train.labels[rows]
    feed = Feed(dataset.train, 8, spec.seed)
    block = next(feed.blocks(0, 1))
    (sums,) = Stepper(learner, spec, np.ones(2, np.float32), find_cluster()).run(block, 16)

    twin.model.compile(
        keras.optimizers.RMSprop(0.001), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    loss = twin.model.train_on_batch(images.astype(np.float32), labels)
    assert sums.loss / sums.images == pytest.approx(float(loss), rel=1e-5)
    for ours, theirs in zip(learner.model.weights, twin.model.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_clipping_uses_the_global_norm_and_smoothing_is_keras_own(dataset: Dataset) -> None:
    spec = load_spec(
        settings=[
            *SMALL,
            "model={family: plain, filters: [4]}",
            "optimizer={name: sgd, learning_rate: 1.0, clip_norm: 0.01}",
            "train.label_smoothing=0.2",
        ]
    )
    learner = learner_for(spec, dataset)
    before = [weight.numpy() for weight in learner.model.weights]
    block = next(Feed(dataset.train, 8, 0).blocks(0, 1))
    logits = learner.model(tf.cast(block.images[0], tf.float32))
    expected = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)(
        tf.one_hot(block.labels[0], 2), logits
    )
    (sums,) = Stepper(learner, spec, np.ones(2, np.float32), find_cluster()).run(block, 16)
    assert sums.loss / sums.images == pytest.approx(float(expected), rel=1e-5)
    moved = [weight.numpy() - old for weight, old in zip(learner.model.weights, before, strict=True)]
    assert np.sqrt(sum(np.sum(np.square(each)) for each in moved)) == pytest.approx(0.01, rel=1e-3)


def test_each_part_of_a_mixed_image_has_the_loss_and_the_weight_of_its_own_label(dataset: Dataset) -> None:
    spec = load_spec(settings=[*SMALL, "augment.mixup=1.0", "train.label_smoothing=0.1"])
    block = next(Feed(dataset.train, 8, 0).blocks(0, 1))
    weights = np.array([1.0, 3.0], np.float32)
    (sums,) = Stepper(learner_for(spec, dataset), spec, weights, find_cluster()).run(block, 16)
    images, labels = tf.cast(block.images[0], tf.float32), block.labels[0]
    draws = draw_numbers(spec.seed + (1 << 40), tf.constant(0, tf.int64), len(labels))
    mixed, partners, shares = mix_images(images, draws[:, MIX_DRAWS], spec.augment)
    logits = learner_for(spec, dataset).model(mixed, training=True)
    smoothed = tf.one_hot(labels, 2) * 0.9 + 0.05
    own, others = (
        tf.nn.softmax_cross_entropy_with_logits(tf.gather(smoothed, rows), logits) * weights[labels[rows]]
        for rows in (np.arange(8), partners.numpy())
    )
    expected = tf.reduce_sum(shares * own + (1 - shares) * others)
    assert sums.loss == pytest.approx(float(expected), rel=1e-4)
    assert float(tf.reduce_min(shares)) < 0.9


def test_class_weights_multiply_the_loss_of_their_class(dataset: Dataset) -> None:
    counts = np.array([30, 10])
    names = ("dark", "light")
    np.testing.assert_allclose(class_weights("none", names, counts), [1, 1])
    np.testing.assert_allclose(class_weights("balanced", names, counts), [40 / 60, 2.0])
    np.testing.assert_allclose(class_weights({"light": 3.0}, names, counts), [1, 3])
    spec = load_spec(settings=SMALL)
    block = next(Feed(dataset.train, 8, 0).blocks(0, 1))
    of_all, of_dark, of_light = (
        Stepper(learner_for(spec, dataset), spec, np.array(weights, np.float32), find_cluster())
        .run(block, 16)[0]
        .loss
        for weights in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0])
    )
    assert of_all == pytest.approx(of_dark + of_light, rel=1e-5)
    logits = learner_for(spec, dataset).model(tf.cast(block.images[0], tf.float32), training=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(block.labels[0], logits).numpy()
    assert of_light == pytest.approx(losses[block.labels[0] == 1].sum(), rel=1e-4)


def test_blocks_hold_the_batches_of_their_steps_whatever_their_size(dataset: Dataset) -> None:
    feed = Feed(dataset.train, 8, 5)
    for block_steps in (1, 4, 100):
        feed.block_steps = block_steps
        blocks = list(feed.blocks(2, 15))
        assert [block.first_step for block in blocks] == list(
            np.cumsum([2, *[block.steps for block in blocks[:-1]]])
        )
        labels = [row for block in blocks for row in block.labels]
        expected = [dataset.train.labels[batch_indices(5, step, 44, 8)] for step in range(2, 15)]
        assert len(labels) == len(expected)
        for one, two in zip(labels, expected, strict=True):
            np.testing.assert_array_equal(one, two)
    assert feed.waited_seconds > 0


def test_an_error_in_the_feed_reaches_the_loop(dataset: Dataset) -> None:
    class Broken(Pixels):
        def take(self, indices: np.ndarray) -> np.ndarray:
            raise OSError("the disk went away")

    broken = Split(
        "train", dataset.train.items, dataset.train.labels, Broken(np.zeros((44, 16, 16, 3), np.uint8))
    )
    with pytest.raises(OSError, match="went away"):
        list(Feed(broken, 8, 0).blocks(0, 3))


def test_training_learns_and_leaves_its_history(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    learner, result = do_train(load_spec(settings=[*SMALL, "train.epochs=8"]), dataset, tmp_path, recorder)
    results = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    rows = recorder.rows
    assert result.history == rows
    # Times are kept apart: the results of two runs can be compared to the bit.
    assert results == untimed(rows)
    assert json.loads((tmp_path / "timings.json").read_text())["epochs"] == result.timings
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows] == [6 * epoch for epoch in range(1, 9)]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert {"validation/loss", "validation/accuracy", "wait_share", "images_per_second"} <= set(rows[0])
    assert 0.0 <= rows[0]["wait_share"] <= 1.0
    predictions = predict_splits(Evaluator(learner.inference_model), dataset)
    np.testing.assert_allclose(predictions["train"].probabilities.sum(axis=1), 1.0)
    hits = predictions["validation"].probabilities.argmax(axis=1) == dataset.held_out.labels
    assert rows[-1]["validation/accuracy"] == pytest.approx(hits.mean())
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2


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


def test_a_stop_during_validation_waits_for_no_more_images(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=[*SMALL, "train.epochs=2"])
    whole, result = do_train(spec, dataset, tmp_path / "whole")
    learner = learner_for(spec, dataset)
    evaluator = Evaluator(learner.inference_model)
    saver = Saver(tmp_path / "stopped" / "checkpoints")
    arguments = (dataset, spec, find_cluster(), saver, Recorder())
    with saver, pytest.raises(StoppedError, match="the checkpoint is safe"):
        train(learner, *arguments, lambda: evaluator.loss_and_accuracy(dataset.held_out, lambda: True))
    assert (tmp_path / "stopped" / "history.jsonl").read_text() == ""
    again, resumed = do_train(spec, dataset, tmp_path / "stopped")
    assert untimed(resumed.history) == untimed(result.history)
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, values(again)[name], err_msg=name)


def test_a_stopped_run_ends_with_the_bits_of_an_undisturbed_one(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=EXACT)
    whole, result = do_train(spec, dataset, tmp_path / "whole")
    again: TrainResult | None = None
    for stop_at in (4, 6, 13, None):  # within an epoch, at the end of one, within another
        try:
            stopped, again = do_train(spec, dataset, tmp_path / "stopped", stop_at=stop_at)
        except StoppedError:
            continue
    assert again is not None
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, values(stopped)[name], err_msg=name)
    assert untimed(again.history) == untimed(result.history)


class Crash(Recorder):
    """Ends everything at a step, as a crash does: nothing is saved any more."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_call(self, report: CallReport) -> None:
        if report.step >= self.step:
            raise KeyboardInterrupt


def test_a_crash_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(settings=[*EXACT, "train.steps_per_call=1"])
    often = load_spec(settings=[*EXACT, "train.steps_per_call=1", "train.checkpoint.every_steps=4"])
    whole, result = do_train(spec, dataset, tmp_path / "whole")
    for crash_at, resumed in ((5, 0), (11, 4)):
        recorder = Crash(crash_at)
        with pytest.raises(KeyboardInterrupt):
            do_train(often, dataset, tmp_path / "crashed", recorder)
        assert recorder.messages == ([f"continuing after step {resumed} of 18"] if resumed else [])
    crashed, again = do_train(often, dataset, tmp_path / "crashed")
    assert untimed(again.history) == untimed(result.history)
    for name, value in values(whole).items():
        np.testing.assert_array_equal(value, values(crashed)[name], err_msg=name)


def test_the_number_of_steps_a_call_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    learners = [
        do_train(
            load_spec(settings=[*EXACT, f"train.steps_per_call={steps}"]), dataset, tmp_path / str(steps)
        )[0]
        for steps in (1, 5)
    ]
    for name, value in values(learners[0]).items():
        np.testing.assert_array_equal(value, values(learners[1])[name], err_msg=name)


def test_leaving_the_dropout_state_out_of_a_checkpoint_would_be_seen(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(settings=EXACT)
    whole, _ = do_train(spec, dataset, tmp_path / "whole")
    with pytest.raises(StoppedError):
        do_train(spec, dataset, tmp_path / "stopped", stop_at=4)
    learner = learner_for(spec, dataset)
    names = [name for name in learner.variables() if "seed_generator" in name]
    assert names
    path = list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name in names:
        arrays[name] = np.zeros_like(arrays[name])
    np.savez(path, **arrays)
    do_train(spec, dataset, tmp_path / "stopped", learner=learner)
    assert any(not np.array_equal(value, values(learner)[name]) for name, value in values(whole).items())


@pytest.mark.parametrize("damage", ["empty", "text", "array", "no record", "folder"])
def test_every_kind_of_damaged_checkpoint_is_passed_over(
    dataset: Dataset, tmp_path: Path, damage: str
) -> None:
    learner = learner_for(load_spec(settings=SMALL), dataset)
    save_checkpoint(tmp_path, 1, take_snapshot(learner.variables()), {"at": 1})
    newest = save_checkpoint(tmp_path, 2, take_snapshot(learner.variables()), {"at": 2})
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    elif damage == "array":
        with open(newest, "wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "no record":
        np.savez(newest, one=np.zeros(3))
    else:
        newest.write_bytes(b"" if damage == "empty" else b"zz")
    assert restore_newest(tmp_path, learner.variables()) == {"at": 1}
    # It is set aside: what is saved from here on is newer than all that counts.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001.npz"]
    assert (tmp_path / "damaged-step-00000002.npz").exists()


def test_a_disk_that_fails_does_not_make_a_checkpoint_a_damaged_one(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_for(load_spec(settings=SMALL), dataset)
    path = save_checkpoint(tmp_path, 1, take_snapshot(learner.variables()), {"at": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(TemporaryError, match="Input/output error"):
        restore_newest(tmp_path, learner.variables())
    assert list_checkpoints(tmp_path) == [path]


def test_lost_best_weights_are_told_before_the_training_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    settings = [*SMALL, "train.keep=best", "train.epochs=8"]
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=settings), dataset, tmp_path, stop_at=20)
    bests = sorted((tmp_path / "checkpoints").glob("best-*.npz"))
    assert 1 <= len(bests) <= 2
    for best in bests:
        best.write_bytes(b"zz")
    recorder = Recorder()
    with pytest.raises(UsageError, match="best epoch"):
        do_train(load_spec(settings=settings), dataset, tmp_path, recorder)
    assert recorder.calls == []


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=SMALL)
    learner, _ = do_train(spec, dataset, tmp_path)
    older, newest = list_checkpoints(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    record = restore_newest(tmp_path / "checkpoints", learner.variables())
    assert record is not None
    assert f"step-{record['standing']['step']:08d}.npz" == older.name


def test_a_loss_that_is_no_number_ends_after_three_recoveries(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    spec = load_spec(settings=[*SMALL, "optimizer={name: sgd, learning_rate: 1e30}"])
    with pytest.raises(DivergedError, match=r"lower optimizer\.learning_rate"):
        do_train(spec, dataset, tmp_path, recorder)
    assert ["half the learning rate" in message for message in recorder.messages] == [True] * 3


def test_training_goes_back_to_the_last_good_epoch_with_half_the_rate(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(settings=[*SMALL, "optimizer={name: sgd, learning_rate: 0.01}"])
    recorder, learner = Recorder(), learner_for(spec, dataset)

    class Poison(Recorder):
        """Makes the rate absurd once, in the second epoch."""

        def on_call(self, report: CallReport) -> None:
            super().on_call(report)
            if report.epoch == 2 and not self.messages:
                learner.schedule.scale.assign(1e38)

    recorder = Poison()
    _, result = do_train(spec, dataset, tmp_path, recorder, learner=learner)
    assert len(recorder.messages) == 1
    assert "back to the end of epoch 1" in recorder.messages[0]
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert result.history[0]["learning_rate"] == pytest.approx(0.01)
    assert result.history[1]["learning_rate"] == pytest.approx(0.005)
    assert all(np.isfinite(value).all() for value in values(learner).values())


def test_recovery_goes_back_beyond_the_checkpoints_of_a_broken_epoch(
    dataset: Dataset, tmp_path: Path
) -> None:
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
            if len(self.messages) == 1:  # it has only heard that the run continues
                learner.schedule.scale.assign(1e38)

    recorder = Poison()
    _, result = do_train(spec, dataset, tmp_path, recorder, learner=learner)
    assert "back to the end of epoch 1" in recorder.messages[1]
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert not [path for path in list_checkpoints(tmp_path / "checkpoints") if "part" in path.name]


def test_patience_is_judged_in_validated_epochs_only(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(
        settings=[
            *SMALL,
            "train.epochs=20",
            "train.validate_every_epochs=4",
            "optimizer={name: sgd, learning_rate: 0.0001}",
            "train.early_stopping={patience_epochs: 3, min_change: 0.5}",
        ]
    )
    _, result = do_train(spec, dataset, tmp_path)
    assert len(result.history) == 8


def test_early_stopping_keeps_the_best_epoch(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(
        settings=[*SMALL, "train.epochs=30", "optimizer={name: sgd, learning_rate: 0.0001}",
                  "train.early_stopping={patience_epochs: 2, min_change: 0.5}"]
    )  # fmt: skip
    learner, result = do_train(spec, dataset, tmp_path)
    assert len(result.history) == 3
    assert result.best_epoch == 1
    assert "since epoch 1" in result.ended
    evaluated = Evaluator(learner.inference_model).loss_and_accuracy(dataset.held_out)
    assert evaluated["loss"] == pytest.approx(result.history[0]["validation/loss"], rel=1e-6)


def test_a_time_budget_ends_training_after_an_epoch(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=[*SMALL, "train.time_budget_seconds=0.000001"])
    _, result = do_train(spec, dataset, tmp_path)
    assert len(result.history) == 1
    assert "time budget" in result.ended
    # An end that comes with the last epoch is no early one.
    spec = load_spec(settings=[*SMALL, "train.epochs=1", "train.time_budget_seconds=0.000001"])
    assert do_train(spec, dataset, tmp_path / "one")[1].ended == ""


def test_the_average_follows_the_weights_and_is_what_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=[*SMALL, "train.epochs=1", "train.ema_decay=0.5"])
    learner, _ = do_train(spec, dataset, tmp_path)
    assert learner.average is not None
    for shadow, weight in zip(learner.average.shadows, learner.inference_model.weights, strict=True):
        np.testing.assert_array_equal(shadow, weight)
    assert any(
        not np.array_equal(shadow, weight)
        for shadow, weight in zip(learner.average.shadows, learner.model.weights, strict=True)
    )


def test_the_average_is_that_of_the_formula() -> None:
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
    (weight,) = model.weights
    weight.assign([[0.0]])
    average = WeightAverage(model, 0.15)
    expected = 0.0
    for step, value in enumerate((1.0, 3.0, -2.0)):
        weight.assign([[value]])
        average.update(tf.constant(step, tf.int64))
        decay = min(0.15, (1 + step) / (10 + step))  # 0.1, 0.15, 0.15
        expected = decay * expected + (1 - decay) * value
        assert float(average.shadows[0][0, 0]) == pytest.approx(expected, rel=1e-6)


def test_a_step_moves_the_average(dataset: Dataset) -> None:
    spec = load_spec(settings=[*SMALL, "train.ema_decay=0.9"])
    learner = learner_for(spec, dataset)
    assert learner.average is not None
    before = [shadow.numpy() for shadow in learner.average.shadows]
    stepper = Stepper(learner, spec, np.ones(2, np.float32), find_cluster())
    stepper.run(next(Feed(dataset.train, 8, 0).blocks(0, 1)), 16)
    for old, shadow, weight in zip(before, learner.average.shadows, learner.model.weights, strict=True):
        np.testing.assert_allclose(shadow, old + 0.9 * (weight.numpy() - old), rtol=1e-5, atol=1e-6)


def test_two_replicas_do_the_steps_of_one() -> None:
    script = Path(__file__).with_name("two_replicas.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout.splitlines()[-1]).values():
        assert found["images"] == [7.0] * 4
        assert found["loss"] < 1e-4
        assert found["weights"] < 1e-5


def test_precision_and_xla_follow_the_machine() -> None:
    cluster = find_cluster()
    assert choose_precision("bfloat16", cluster) == "bfloat16"
    assert choose_precision("auto", cluster) == ("bfloat16" if cluster.has_bfloat16 else "float32")
    assert choose_xla(True, cluster)
    assert not choose_xla(False, cluster)
    assert choose_xla("auto", cluster) == (cluster.device_kind == "GPU")


def test_a_step_compiled_by_xla_or_in_bfloat16_is_close_to_the_plain_one(dataset: Dataset) -> None:
    block = next(Feed(dataset.train, 8, 0).blocks(0, 1))
    losses = {}
    for name, setting in {
        "plain": "train.xla=false",
        "xla": "train.xla=true",
        "bf16": "train.precision=bfloat16",
    }.items():
        spec = load_spec(settings=[*SMALL, "model={family: plain, filters: [4]}", setting])
        stepper = Stepper(learner_for(spec, dataset), spec, np.ones(2, np.float32), find_cluster())
        losses[name] = stepper.run(block, 16)[0].loss
    turned = load_spec(settings=[*SMALL, "augment.rotate_degrees=10.0"])
    as_on_gpu = replace(find_cluster(), device_kind="GPU")  # where XLA is chosen
    stepper = Stepper(learner_for(turned, dataset), turned, np.ones(2, np.float32), as_on_gpu)
    assert np.isfinite(stepper.run(block, 16)[0].loss)  # XLA has no kernel for rotation
    assert losses["xla"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=5e-2)
