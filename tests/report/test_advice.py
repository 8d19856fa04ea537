"""Advice in the verdict: the most effective change, a valid setting that the run does not have yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.verdict_cases import Rows, answers, both, copied, creeping, flat, rising, verdict
from scipy import special

from trainer.evaluate.metrics import Predictions
from trainer.report.verdict import Verdict, judge
from trainer.spec import load_spec


def test_labels_that_the_model_confidently_contradicts_are_reported() -> None:
    def judged(train: float, sure: float) -> Verdict:
        predictions = {
            split: answers(split, {"cats": (500, train), "dogs": (500, train)}, sure)
            for split in ("train", "validation")
        }
        return judge(predictions, flat(), "validation", {})

    assert judged(0.97, 0.975).kind == "fine"
    assert judged(0.97, 0.975).advice.startswith(
        "The model confidently contradicts the labels of 30 training images. Check these labels"
    )
    assert judged(0.8, 0.975).kind == "contradicted"
    assert (
        "the model confidently contradicts the labels of 200 training images" in judged(0.8, 0.975).headline
    )
    # Confidence equal to the average of correct answers, but not to the highest: overlapping classes.
    for sure in (0.55, 0.96):
        assert "contradict" not in judged(0.8, sure).headline + judged(0.8, sure).advice


def test_advice_is_to_check_labels_when_accuracy_fell_during_training() -> None:
    fallen = [row | {"validation/accuracy": 0.8 - 0.01 * row["epoch"]} for row in flat()]
    assert verdict(0.99, 0.6, fallen).advice.startswith(
        "The validation accuracy fell from 0.790 in epoch 1 to"
    )
    assert pasted(verdict(0.99, 0.6, fallen).advice)[0] == "train.keep=best"
    with_best_epoch = verdict(0.99, 0.79, fallen, settings={"train": {"keep": "best"}})
    assert "train.keep" not in with_best_epoch.advice
    assert "labels" not in verdict(0.99, 0.72, flat(0.72)).advice


@pytest.mark.parametrize(("classes", "signal"), [(2, 0.5), (4, 0.5), (10, 1.0), (100, 1.5), (1000, 2.0)])
def test_labels_are_not_blamed_when_the_model_has_learnt_little(classes: int, signal: float) -> None:
    random = np.random.default_rng(0)

    def calibrated(split: str, count: int) -> Predictions:
        labels = random.integers(0, classes, count).astype(np.int32)
        logits = random.normal(size=(count, classes))
        logits[np.arange(count), labels] += signal * random.uniform(0.2, 1.8, count)
        rows = special.softmax(signal * logits, axis=1)
        return Predictions(
            split, tuple(map(str, range(count))), labels, rows, tuple(map(str, range(classes)))
        )

    predictions = {"train": calibrated("train", 3000), "validation": calibrated("validation", 1000)}
    result = judge(predictions, flat(), "validation", {})
    assert result.kind == "under-trained"
    assert "contradict" not in result.advice


def resolved(settings: Sequence[str]) -> dict[str, Any]:
    """Return the complete spec, as stored in a run."""
    return load_spec(settings=settings).model_dump(mode="json")


@pytest.mark.parametrize(
    ("settings", "advised"),
    [
        (["train.epochs=10"], "train.epochs=20"),
        (
            ["train.epochs=50", "train.early_stopping={monitor: accuracy}"],
            "train.early_stopping.patience_epochs=10",
        ),
        (["train.epochs=50", "train.time_budget_seconds=60.0"], "train.time_budget_seconds=120"),
        (
            ["train.epochs=50", "train.time_budget_seconds=60.0", "train.early_stopping={monitor: accuracy}"],
            "train.time_budget_seconds=120",
        ),
        (
            [
                "train.epochs=50",
                "train.time_budget_seconds=60.0",
                "train.early_stopping={patience_epochs: 3}",
            ],
            "train.early_stopping.patience_epochs=6",
        ),
    ],
)
def test_advice_to_train_longer_raises_the_limit_that_ended_training(
    settings: list[str], advised: str
) -> None:
    # The best accuracy is in the last epoch, the best loss in the first.
    result = verdict(0.82, 0.80, rising(), settings=resolved(settings))
    assert pasted(result.advice)[0] == advised


SETTINGS = (
    [], ["model.family=plain", "model.filters=[1]", "model.dropout=0.3"], ["model.filters=[65536, 1, 1]"],
    ["train.epochs=200", "train.early_stopping={}"], ["optimizer.learning_rate=1e-9", "train.keep=best"],
    ["optimizer.learning_rate=1000.0", "train.time_budget_seconds=5.0"],
    ["optimizer={name: sgd, momentum: 0.9}"], ["augment={mixup: 0.2, crop: {scale: [0.5, 1.0]}}"],
    ["train={label_smoothing: 0.1, class_weights: balanced}"],
)  # fmt: skip


def random_run(random: np.random.Generator) -> tuple[dict[str, Predictions], Rows, dict[str, Any]]:
    """Return predictions, curves and dataset.json of a random run."""
    classes, held = random.choice([2, 3, 12]), random.choice([1, 4, 20, 300])
    recalls = random.choice([0.0, 0.2, 0.6, 0.8, 0.95, 1.0], (2, classes))
    sizes = np.full(classes, 40), random.multinomial(held, random.dirichlet(np.ones(classes)))
    predictions = {
        split: answers(split, {str(label): (int(images[label]), shares[label]) for label in range(classes)})
        for split, images, shares in zip(("train", "validation"), sizes, recalls, strict=True)
    }
    first, last = random.choice([9.0, 0.7, 0.69, 0.1, 0.0], 2)
    copies = copied(int(random.choice([0, 0, held // 2])))
    return (
        predictions,
        creeping(first, last, int(random.integers(0, 13))),
        {"split_by": "stratified"} | copies,
    )


@pytest.mark.filterwarnings("error")
def test_all_advised_settings_are_valid_and_differ_from_the_spec() -> None:
    random, kinds = np.random.default_rng(3), set()
    for settings in SETTINGS * 25:
        spec = load_spec(settings=settings)
        predictions, history, dataset = random_run(random)
        result = judge(predictions, history, "validation", spec.model_dump(mode="json"), dataset)
        kinds.add(result.kind)
        assert "nan" not in result.headline + result.advice
        for each in advised_settings(result.advice):
            assert load_spec(settings=[*settings, each]) != spec, (result.advice, each)
    assert len(kinds) >= 7, kinds


def advised_settings(advice: str) -> list[str]:
    """Return the settings in `advice`."""
    result = re.findall(r"--set (?:'([^']*)'|(\S+?)[.,;:]*(?= |$))", advice)
    return [quoted or plain for quoted, plain in result]


def pasted(advice: str) -> list[str]:
    """Return the settings in `advice`, after checking that a spec accepts them."""
    settings = advised_settings(advice)
    load_spec(settings=settings)
    return settings


def test_repeated_advice_on_overfitting_names_a_new_setting_each_time() -> None:
    settings = ["optimizer.name=adamw", "model.dropout=0", "augment.flip=none"]
    for _ in range(5):
        spec = load_spec(settings=settings)
        advice = verdict(0.99, 0.72, settings=spec.model_dump(mode="json")).advice
        advised = pasted(advice)
        assert advised, advice
        assert all(load_spec(settings=[*settings, each]) != spec for each in advised), advice
        settings.append(advised[0])
    assert [each.partition("=")[0] for each in settings[3:6]] == [
        "augment.crop", "model.dropout", "optimizer.weight_decay",
    ]  # fmt: skip
    assert "optimizer.name" not in advice
    assert advised[0].startswith("model.filters=")


@pytest.mark.parametrize(
    ("rate", "history", "advised"),
    [
        (3e-6, creeping(0.6934, 0.6925), "optimizer.learning_rate=0.001"),
        (0.001, creeping(0.6934, 0.6925), "optimizer.learning_rate=0.003"),
        (0.3, [creeping(9.0, 9.0, 1)[0], *creeping(0.71, 0.70)[1:]], "optimizer.learning_rate=0.001"),
        (0.001, creeping(0.695, 0.696), "optimizer.learning_rate=0.0003"),
        (0.001, creeping(0.69, 0.40), "train.epochs=20"),
    ],
)
def test_advice_distinguishes_too_low_and_too_high_learning_rates(
    rate: float, history: Rows, advised: str
) -> None:
    settings = {"optimizer": {"name": "adamw", "learning_rate": rate}, "train": {"epochs": 10}}
    assert pasted(verdict(0.5, 0.5, history, settings=settings).advice) == [advised]
    assert pasted(verdict(0.7, 0.68, history, settings=settings).advice)[0] == advised


def test_underconfident_model_has_a_remedy() -> None:
    def advice(settings: dict[str, Any]) -> list[str]:
        predictions = both(0.95, 0.94)
        rows = np.where(predictions["validation"].probabilities > 0.5, 0.8, 0.2)
        predictions["validation"] = replace(predictions["validation"], probabilities=rows)
        return pasted(judge(predictions, flat(), "validation", settings).advice)

    assert advice({"augment": {"mixup": 0.2}, "train": {"label_smoothing": 0.1}}) == ["augment.mixup=0"]
    assert advice({"train": {"label_smoothing": 0.1}}) == ["train.label_smoothing=0"]
    assert advice({}) == ["train.epochs=40"]


def test_advice_names_the_augmented_recipe() -> None:
    result = verdict(0.99, 0.72, settings={"recipe": "cats-vs-dogs"})
    assert result.advice.startswith("Try the recipe cats-vs-dogs-augmented")


def test_advice_names_the_epoch_with_the_lowest_validation_loss() -> None:
    history = [row | {"validation/loss": 0.3 + 0.02 * abs(row["epoch"] - 6)} for row in flat()]
    assert "The validation loss was lowest in epoch 6 of 20" in verdict(0.99, 0.72, history).advice


def test_falling_loss_of_an_undertrained_run_suggests_more_epochs() -> None:
    falling = [row | {"train/loss": 1 / row["epoch"]} for row in flat(0.69, epochs=5)]
    assert "train.epochs=10" in verdict(0.70, 0.69, falling).advice
    small = {"model": {"filters": [8, 16]}}
    assert "model.filters=[16, 32]" in verdict(0.70, 0.69, flat(0.69), settings=small).advice
    mixed = {"augment": {"mixup": 0.5, "flip": "none"}}
    assert "--set augment.mixup=0" in verdict(0.70, 0.69, flat(0.69), settings=mixed).advice
    assert "augment" not in verdict(0.70, 0.69, flat(0.69), settings=small).advice


def test_run_without_mistakes_has_no_weakest_class() -> None:
    result = verdict(1.0, 1.0)
    assert result.kind == "fine"
    assert result.weakest_class is None
    assert result.advice.startswith("No mistakes on 1,000 images.")


def test_few_held_out_images_suggest_a_larger_validation_split() -> None:
    assert verdict(0.95, 1.0, count=10).advice.startswith(
        "Hold out more images. With 10 images, the 95% interval is 0.28 wide."
    )
    settings = {"data": {"validation_fraction": 0.2}}
    result = judge(both(0.95, 1.0, count=10), flat(), "validation", settings, {"split_by": "stratified"})
    assert result.headline.endswith(
        "fits well, as far as 10 images can show (gap -0.050, 95% interval -0.060 to 0.228)"
    )
    assert "--set data.validation_fraction=0.4. With 10 images, the 95% interval is" in result.advice
