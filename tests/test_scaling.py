"""A batch that grows with the devices: what changes with it, what does not, and that it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trainer_process import QUICK, trainer

from trainer.scaling import describe_scaling, scaled_spec
from trainer.spec import load_spec

SCALED = "train={scale_batch: true, global_batch_size: 20}"


@pytest.mark.parametrize(
    ("optimizer", "rate", "said"),
    [
        ("sgd", 0.4, "learning rate 0.1 x 4 (the linear rule of sgd)"),
        ("rmsprop", 0.2, "learning rate 0.1 x 2 (the square root rule of rmsprop)"),
        ("adam", 0.2, "square root"),
        ("adamw", 0.2, "square root"),
    ],
)
def test_the_rate_follows_the_rule_of_the_optimizer(optimizer: str, rate: float, said: str) -> None:
    spec = load_spec(settings=[SCALED, f"optimizer={{name: {optimizer}, learning_rate: 0.1}}"])
    scaled = scaled_spec(spec, 4)
    assert scaled.optimizer.learning_rate == pytest.approx(rate)
    assert scaled.train.global_batch_size == 80
    described = describe_scaling(spec, 4)
    assert described is not None
    assert "20 x 4 replicas = 80" in described
    assert said in described
    assert scaled_spec(spec, 1) == spec


def test_nothing_grows_unasked() -> None:
    spec = load_spec(settings=["train.global_batch_size=20"])
    assert scaled_spec(spec, 8) is spec
    assert describe_scaling(spec, 8) is None


def test_a_run_on_two_devices_has_half_the_steps_and_says_so(photos: Path, tmp_path: Path) -> None:
    done = trainer(
        "train", "--data", photos, "--output", tmp_path / "runs", "--run-name", "two", *QUICK,
        "--set", "train.devices=cpu:2", "--set", "train.scale_batch=true", cache=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "global batch 8 x 2 replicas = 16" in done.stdout
    run = tmp_path / "runs" / "two"
    assert json.loads((run / "environment.json").read_text())["global_batch_size"] == 16
    images = json.loads((run / "dataset.json").read_text())["splits"]["train"]["images"]
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 * -(-images // 16)
