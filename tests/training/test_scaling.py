"""Batch scaling with the number of devices: scaled settings and their report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.trainer_process import QUICK, refused, trainer

from trainer.errors import UsageError
from trainer.spec import load_spec
from trainer.training.scaling import describe_scaling, require_equal_shares, require_whole_batch, scaled_spec

SCALED = "train={scale_batch: true, global_batch_size: 20}"


@pytest.mark.parametrize(
    ("optimizer", "rate", "text"),
    [
        ("sgd", 0.4, "learning rate 0.1 x 4 (the linear rule of sgd)"),
        ("rmsprop", 0.2, "learning rate 0.1 x 2 (the square root rule of rmsprop)"),
        ("adam", 0.2, "square root"),
        ("adamw", 0.2, "square root"),
        ("muon", 0.2, "square root"),
    ],
)
def test_learning_rate_is_scaled_by_the_rule_of_the_optimizer(optimizer: str, rate: float, text: str) -> None:
    spec = load_spec(settings=[SCALED, f"optimizer={{name: {optimizer}, learning_rate: 0.1}}"])
    scaled = scaled_spec(spec, 4)
    assert scaled.optimizer.learning_rate == pytest.approx(rate)
    assert scaled.train.global_batch_size == 80
    assert scaled.optimizer.rest_rate is None
    described = describe_scaling(spec, 4)
    assert described is not None
    assert "20 x 4 replicas = 80" in described
    assert text in described
    assert scaled_spec(spec, 1) == spec


def test_both_learning_rates_of_muon_are_scaled() -> None:
    spec = load_spec(settings=[SCALED, "optimizer={name: muon, learning_rate: 0.1, rest_rate: 0.01}"])
    scaled = scaled_spec(spec, 4).optimizer
    assert (scaled.learning_rate, scaled.rest_rate) == pytest.approx((0.2, 0.02))


def test_scaled_average_covers_as_many_images() -> None:
    spec = load_spec(settings=[SCALED, "train.ema_decay=0.99"])
    scaled = scaled_spec(spec, 4)
    # One step of 80 images replaces four steps of 20.
    assert scaled.train.ema_decay == pytest.approx(0.99 * 0.99 * 0.99 * 0.99)
    assert "ema_decay 0.99 to the power of 4" in str(describe_scaling(spec, 4))
    assert "ema_decay" not in str(describe_scaling(load_spec(settings=[SCALED]), 4))


def test_batch_larger_than_the_training_data_is_rejected() -> None:
    spec = load_spec(settings=[SCALED])
    require_whole_batch(spec, 4, 80)
    with pytest.raises(UsageError, match=r"to 80 images on 4 devices.*Received: 79 images"):
        require_whole_batch(spec, 4, 79)
    require_whole_batch(load_spec(settings=["train.global_batch_size=20"]), 4, 3)


def test_spec_is_unchanged_without_scale_batch() -> None:
    spec = load_spec(settings=["train.global_batch_size=20"])
    assert scaled_spec(spec, 8) is spec
    assert describe_scaling(spec, 8) is None


@pytest.mark.engine
def test_run_on_two_devices_has_half_the_steps_and_reports_it(photos: Path, tmp_path: Path) -> None:
    done = trainer(
        "train", "--data", photos, "--output", tmp_path / "runs", "--run-name", "two", *QUICK,
        "--set", "train.devices=cpu:2", "--set", "train.scale_batch=true", cache=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "global batch 8 x 2 replicas = 16" in done.stdout
    run = tmp_path / "runs" / "two"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["global_batch_size"] == 16
    assert environment["learning_rate"] == pytest.approx(0.001 * 2**0.5)
    report = (run / "report.html").read_text()
    assert "batch size 16" in report
    assert "learning rate 0.00141421" in report
    images = json.loads((run / "dataset.json").read_text())["splits"]["train"]["images"]
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 * -(-images // 16)
    # As if killed just before publication: it resumes only with the same number of devices.
    for name in ("_SUCCESS", "MANIFEST.json"):
        (run / name).unlink()
    alone = trainer(
        "train", "--data", photos, "--output", tmp_path / "runs", "--run-name", "two", *QUICK,
        "--set", "train.devices=cpu:1", "--set", "train.scale_batch=true", cache=tmp_path,
    )  # fmt: skip
    refused(
        alone, 2, "over all devices) changed since the first start of this run", "Received: 8, previously 16"
    )


@pytest.mark.parametrize(
    ("batch", "images", "fits"), [(32, 320, True), (32, 336, True), (20, 320, False), (32, 330, False)]
)
def test_tpu_cores_require_equal_shares_of_every_batch(batch: int, images: int, fits: bool) -> None:
    spec = load_spec(settings=[f"train.global_batch_size={batch}"])
    require_equal_shares(spec, 1, images)
    if fits:
        require_equal_shares(spec, 8, images)
        return
    with pytest.raises(UsageError, match="a multiple of 16 images"):
        require_equal_shares(spec, 8, images)
