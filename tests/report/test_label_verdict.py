"""Verdict and example pictures of a report on images with any number of labels."""

from __future__ import annotations

import numpy as np
from helpers.label_answers import answers
from helpers.report_inputs import make_history

from trainer.evaluate.label_predictions import MultiLabelPredictions
from trainer.evaluate.metrics import compute_metrics
from trainer.report.label_page import label_rows
from trainer.report.label_verdict import constant_precision, judge_labels
from trainer.report.pictures import choose_correct, choose_mistakes, read_pictures
from trainer.report.verdict import Verdict


def judged(train: float, held: float, count: int = 300, epochs: int = 20, **changes: object) -> Verdict:
    predictions = {"train": answers(train, 2 * count, 7, "train"), "validation": answers(held, count, 8)}
    predictions |= {name: each for name, each in changes.items() if isinstance(each, MultiLabelPredictions)}
    history = make_history(epochs, "validation", (0.9, 0.85))
    for row in history:
        row["validation/mean_average_precision"] = 0.9
    return judge_labels(predictions, history, "validation", {"train": {"class_weights": "none"}}, {})


def test_the_verdict_is_in_words_beside_the_constant_answer() -> None:
    for verdict, kind, words in (
        (judged(6.0, 5.8), "fine", "fits well"),
        (judged(0.0, 0.0), "guessing", "no better than guessing"),
        (judged(9.0, 1.5), "over-fitted", "over-fitted (gap 0."),
        (judged(1.0, 1.0), "under-trained", "the train precision is low"),
        (judged(6.0, 5.8, epochs=2), "early", "too early to say after 2 epochs"),
        (judged(3.0, 0.3, count=12), "unproven", "12 images can't tell it from guessing"),
    ):
        assert verdict.kind == kind, verdict.headline
        assert words in verdict.headline
        guess = constant_precision(answers(0, 12 if kind == "unproven" else 300, 8))
        assert f"a constant answer has {guess:.3f}" in verdict.headline
        assert verdict.advice
    missed = answers(6.0, 300, 8)
    never = missed.with_thresholds(np.array([0.5, 1.1, 0.5]))
    verdict = judged(6.0, 5.8, validation=never)
    assert verdict.kind == "neglected"
    assert "sea, calm is never found (recall 0.000 of" in verdict.headline
    assert "train.class_weights=balanced" in verdict.advice
    assert verdict.weakest_class == "sea, calm"


def test_pictures_show_the_labels_that_are_there_and_those_that_are_said() -> None:
    given = answers(3.0, 40)
    wrong, right = choose_mistakes(given, 5), choose_correct(given, 5)
    assert not given.right[wrong].any()
    assert given.right[right].all()
    assert (np.diff(given.confidence[wrong]) <= 0).all()
    assert len({given.truth_text(int(index)) for index in right[:3]}) == 3
    shown = read_pictures(given, wrong, lambda split, rows: np.zeros((len(rows), 8, 8, 3), np.uint8))
    assert shown[0].label == given.truth_text(int(wrong[0]))
    assert shown[0].predicted == given.answer_text(int(wrong[0]))
    assert {"no label", "sun, sea, calm"} <= {given.truth_text(index) for index in range(40)}
    metrics = {f"validation/{name}": value for name, value in compute_metrics(given).items()}
    row = label_rows(metrics, given)[0]
    assert (row.name, row.threshold, row.share) == ("sun", 0.5, row.support / 40)
