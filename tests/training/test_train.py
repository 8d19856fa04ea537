"""The training loop: its results, the files that it writes, and early ends of training."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.free_ports import addresses
from helpers.small_training import SMALL, Recorder, dark_and_light, do_train, learner_for, untimed

from trainer.data.dataset import Dataset
from trainer.distributed import ProcessInfo, join_process_group
from trainer.distributed.devices import find_cluster
from trainer.errors import StoppedError
from trainer.evaluate.evaluator import Evaluator, predict_splits
from trainer.spec import load_spec
from trainer.training.checkpoint import list_checkpoints
from trainer.training.phase_work import fits_in_device_cache


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def test_training_learns_and_writes_its_history(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    learner, result = do_train(load_spec(settings=[*SMALL, "train.epochs=8"]), dataset, tmp_path, recorder)
    results = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    rows = recorder.rows
    assert result.history == rows
    # Times are stored separately, so that the results of two runs can be compared bit for bit.
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


def test_device_cache_does_not_change_the_training(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=[*SMALL, "train.epochs=2", "train.xla=false", "augment.mixup=0.5"])
    like_a_gpu = replace(find_cluster(), device_kind="GPU", memory_bytes=1 << 20)
    assert fits_in_device_cache(dataset.train, like_a_gpu)
    assert not fits_in_device_cache(dataset.train, replace(like_a_gpu, memory_bytes=1 << 16))
    assert not fits_in_device_cache(dataset.train, find_cluster())
    _, expected = do_train(spec, dataset, tmp_path / "host")
    _, cached = do_train(spec, dataset, tmp_path / "cached", cluster=like_a_gpu)
    assert untimed(cached.history) == untimed(expected.history)


def test_patience_is_checked_only_in_validated_epochs(dataset: Dataset, tmp_path: Path) -> None:
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


def test_early_stopping_restores_the_best_epoch(dataset: Dataset, tmp_path: Path) -> None:
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
    # A budget that expires with the last epoch does not count as an early end.
    spec = load_spec(settings=[*SMALL, "train.epochs=1", "train.time_budget_seconds=0.000001"])
    assert do_train(spec, dataset, tmp_path / "one")[1].ended == ""


def test_stop_of_one_process_during_evaluation_stops_both() -> None:
    dataset, hosts = dark_and_light(), tuple(addresses(2))
    learner = learner_for(load_spec(settings=SMALL), dataset)
    ended: dict[int, str] = {}

    def work(index: int) -> None:
        group = join_process_group(ProcessInfo(hosts, index, hosts[0]), {}, 30.0, lambda text: None)
        evaluator = Evaluator(learner.inference_model)
        evaluator._inference.group = group
        whole = evaluator.loss_and_accuracy(dataset.held_out)
        try:
            evaluator.loss_and_accuracy(dataset.held_out, lambda: index == 1)
        except StoppedError as error:
            ended[index] = f"{error} {whole['accuracy']:.3f}"
        group.shutdown()

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == [0, 1]
    assert ended[0] == ended[1]
