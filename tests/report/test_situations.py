"""Verdict and first advice on fourteen training runs, most with one planted fault.

The thresholds of the verdict were chosen on seeds other than `SEED`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.situations import Situation, trained, write_data

from trainer.errors import DivergedError
from trainer.report.verdict import Verdict, judge

SEED = 7
HARD = 170.0
"""Standard deviation of the pixel noise at which the model can overfit."""
PRETRAINED = "Start from pretrained weights: --recipe auto"
LABELS = r"The model confidently contradicts the labels of \d+ training images\. Check these labels"


def settings(*texts: str, epochs: int = 40) -> list[str]:
    return [f"train.epochs={epochs}", *texts]


TABLE = [
    (Situation("memorised", (30,) * 4, HARD, settings=settings()), "over-fitted", PRETRAINED),
    (Situation("clean"), "fine", "No mistakes on 120 images"),
    (
        Situation("two epochs", settings=settings("optimizer.learning_rate=0.001", epochs=2)),
        "early",
        "Train longer: --set train.epochs=10",
    ),
    (
        Situation("rate too high", settings=["optimizer.learning_rate=0.3"]),
        "guessing",
        "The train loss of the first epoch is very high. Lower the learning rate: "
        "--set optimizer.learning_rate=0.001",
    ),
    (
        Situation("rate too low", settings=["optimizer.learning_rate=3e-6"]),
        "guessing",
        "The train loss hardly fell. Raise the learning rate: --set optimizer.learning_rate=0.001",
    ),
    (
        Situation("95 to 5", (285, 15), 90.0, settings=settings(epochs=5)),
        "guessing",
        "The classes are imbalanced, and second is rarely recognised. Balance them: "
        "--set train.class_weights=balanced",
    ),
    (
        Situation("95 to 5, weighted", (285, 15), 90.0,
                  settings=settings("train.class_weights=balanced", epochs=10)),
        "fine",
        "No mistakes on 150 images|To improve further, add images of the weakest class",
    ),
    (
        Situation("exact leak", (60,) * 4, 180.0, copied=0.75, settings=settings()),
        "over-fitted",
        r"Remove the \d+ copies from validation; dataset.json lists them",
    ),
    # Not detected yet: validation contains mirror images of training images.
    (
        Situation("mirrored leak", (60,) * 4, 180.0, copied=0.75, is_mirrored=True,
                  settings=settings("augment.flip=horizontal")),
        "fine|over-fitted|under-trained",
        "(?!Remove)",
    ),
    (Situation("5% swapped labels", (120,) * 4, swapped=0.05), "fine", LABELS),
    (Situation("30% swapped labels", (120,) * 4, swapped=0.3), "contradicted", LABELS),
    (
        Situation("random labels", swapped=0.75),
        "guessing",
        r"The model memorises the training images \(accuracy .*\. Check whether the labels are correct",
    ),
    (
        Situation("40 photos", (10,) * 4, has_split=False),
        "fine",
        "Hold out more images: --set data.validation_fraction=0.4. With 8 images, the 95% interval is",
    ),
]  # fmt: skip


def judged(situation: Situation, folder: Path) -> Verdict:
    write_data(folder / "data", situation, SEED)
    inputs, _ = trained(folder / "data", situation, folder / "cache")
    spec = yaml.safe_load(inputs.spec_yaml)
    return judge(inputs.predictions, inputs.history, inputs.held_out, spec, inputs.dataset)


@pytest.mark.engine
@pytest.mark.parametrize(
    ("situation", "kind", "advice"), [pytest.param(*row, id=row[0].name) for row in TABLE]
)
def test_planted_faults_are_found(situation: Situation, kind: str, advice: str, tmp_path: Path) -> None:
    result = judged(situation, tmp_path)
    assert result.kind in kind.split("|"), (result.headline, result.advice)
    assert re.match(advice, result.advice), (result.headline, result.advice)
    if situation.copied and not situation.is_mirrored:
        assert "exact copies of training images" in result.headline


@pytest.mark.engine
def test_diverged_loss_ends_with_a_suggested_learning_rate(tmp_path: Path) -> None:
    diverging = ["optimizer.name=sgd", "optimizer.learning_rate=1e30"]
    with pytest.raises(DivergedError, match=r"not a finite number.*--set optimizer\.learning_rate=0\.05"):
        judged(Situation("nan", settings=diverging), tmp_path)
