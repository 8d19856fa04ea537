"""Verdict and example pictures of a report on images with any number of labels."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.label_answers import answers
from helpers.report_inputs import make_history

from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import compute_metrics
from trainer.report.label_page import label_rows
from trainer.report.label_verdict import constant_precision, judge_labels
from trainer.report.pictures import choose_correct, choose_mistakes, read_pictures
from trainer.report.verdict import Verdict


def judged(
    train: float, held: float, count: int = 300, epochs: int = 20, is_probe: bool = False, **changes: object
) -> Verdict:
    predictions = {"train": answers(train, 2 * count, 7, "train"), "validation": answers(held, count, 8)}
    predictions |= {name: each for name, each in changes.items() if isinstance(each, MultiLabelPredictions)}
    history = make_history(epochs, "validation", (0.9, 0.85))
    for row in history:
        row["validation/mean_average_precision"] = 0.9
    if is_probe:
        history = [row | {"probe/penalty": 1.0} for row in history[:1]]
    return judge_labels(predictions, history, "validation", {"train": {"class_weights": "none"}}, {})


def test_each_kind_of_verdict_has_its_headline_with_the_constant_prediction() -> None:
    for verdict, kind, conclusion in (
        (judged(6.0, 5.8), "fine", "fits well"),
        (judged(0.0, 0.0), "guessing", "no better than guessing"),
        (judged(9.0, 1.5), "over-fitted", "overfitted (gap 0."),
        (judged(1.0, 1.0), "under-trained", "the train precision is low"),
        (judged(6.0, 5.8, epochs=2), "early", "too early to judge after 2 epochs"),
        (
            judged(3.0, 0.3, count=12),
            "unproven",
            "inconclusive, because 12 images cannot show whether it beats guessing",
        ),
    ):
        assert verdict.kind == kind, verdict.headline
        assert conclusion in verdict.headline
        guess = constant_precision(answers(0, 12 if kind == "unproven" else 300, 8))
        assert f"a constant prediction has {guess:.3f}" in verdict.headline
        assert verdict.advice
    missed = answers(6.0, 300, 8)
    never = missed.with_thresholds(np.array([0.5, 1.1, 0.5]))
    verdict = judged(6.0, 5.8, validation=never)
    assert verdict.kind == "neglected"
    assert "sea, calm is never recognised (recall 0.000 on" in verdict.headline
    assert "train.class_weights=balanced" in verdict.advice
    assert verdict.weakest_class == "sea, calm"


def test_probe_with_large_gap_is_limited_by_the_frozen_features() -> None:
    verdict = judged(9.0, 1.5, is_probe=True)
    assert verdict.kind == "limited"
    assert verdict.headline.endswith(f"limited by the frozen features (gap {verdict.gap:.3f})")
    assert verdict.gap == pytest.approx(judged(9.0, 1.5).gap)
    assert verdict.advice.startswith("Fine-tune the backbone: --set train.epochs=10")
    assert verdict.advice.endswith("Add training images.")
    assert judged(6.0, 5.8, is_probe=True).kind == "fine"


def test_pictures_show_true_and_predicted_labels() -> None:
    predictions = answers(3.0, 40)
    wrong, right = choose_mistakes(predictions, 5), choose_correct(predictions, 5)
    assert not predictions.right[wrong].any()
    assert predictions.right[right].all()
    assert (np.diff(predictions.confidence[wrong]) <= 0).all()
    assert len({predictions.truth_text(int(index)) for index in right[:3]}) == 3
    shown = read_pictures(predictions, wrong, lambda split, rows: np.zeros((len(rows), 8, 8, 3), np.uint8))
    assert shown[0].label == predictions.truth_text(int(wrong[0]))
    assert shown[0].predicted == predictions.predicted_text(int(wrong[0]))
    assert {"no label", "sun, sea, calm"} <= {predictions.truth_text(index) for index in range(40)}
    metrics = {f"validation/{name}": value for name, value in compute_metrics(predictions).items()}
    row = label_rows(metrics, predictions)[0]
    assert (row.name, row.threshold, row.share) == ("sun", 0.5, row.support / 40)
