"""Images with any number of labels: loss, metrics, thresholds, verdict, comparison and release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from helpers.label_answers import NAMES, answers
from helpers.report_inputs import make_predictions, run_of

from trainer.cli.predict import labels_above
from trainer.compare.comparison import compare_all, compare_runs
from trainer.compare.runs import Run
from trainer.compare.text import as_values, table
from trainer.errors import UsageError
from trainer.evaluate.label_predictions import MultiLabelPredictions, choose_thresholds
from trainer.evaluate.metrics import compute_metrics
from trainer.evaluate.prediction_files import read_predictions, write_predictions
from trainer.ranking import Ranking, draws
from trainer.release.decision import decide, why_guessing
from trainer.release.evaluate_pair import in_order
from trainer.training.objective import MULTI, SINGLE
from trainer.training.probe import compute_accuracy, evaluate_label_logits, fit_label_probe
from trainer.training.state import score
from trainer.training.step import class_weights


def test_average_precision_equals_scikit_learn_with_ties_and_in_resamples() -> None:
    for seed in range(5):
        random = np.random.default_rng(seed)
        truth, scores = random.random((60, 4)) < 0.3, random.integers(0, 12, (60, 4)) / 11
        truth[:, 3] = False
        ranking = Ranking(truth, scores)
        precisions = ranking.average_precisions()
        expected = [sklearn.metrics.average_precision_score(truth[:, n], scores[:, n]) for n in range(3)]
        np.testing.assert_allclose(precisions[:3], expected, rtol=1e-12)
        assert np.isnan(precisions[3])
        assert ranking.mean() == pytest.approx(np.mean(expected))
        (counts,) = draws(random, 3, 60, 4)
        assert counts.sum(axis=1).tolist() == [60] * 3
        again = [Ranking(truth.repeat(n, axis=0), scores.repeat(n, axis=0)).mean() for n in counts]
        np.testing.assert_allclose(ranking.resampled_means(counts), again, rtol=1e-12)


def test_permutation_test_separates_skill_from_chance() -> None:
    assert Ranking(answers(2.0, 60).truth, answers(2.0, 60).probabilities).p_of_chance() < 0.01
    constant = np.full((60, 3), 0.7)
    assert Ranking(answers(0, 60).truth, constant).p_of_chance() == 1
    p_values = [
        Ranking(answers(0, 40, seed).truth, answers(0, 40, seed).probabilities).p_of_chance()
        for seed in range(30)
    ]
    assert 0.3 < np.mean(p_values) < 0.7


def test_metrics_equal_those_of_scikit_learn() -> None:
    predictions = answers(2.0)
    metrics, predicted = compute_metrics(predictions), predictions.predicted
    assert (
        metrics["accuracy"]
        == metrics["subset_accuracy"]
        == sklearn.metrics.accuracy_score(predictions.truth, predicted)
    )
    assert metrics["correct"] == predictions.right.sum()
    assert metrics["hamming_loss"] == pytest.approx(
        sklearn.metrics.hamming_loss(predictions.truth, predicted)
    )
    for kind in ("micro", "macro"):
        precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
            predictions.truth, predicted, average=kind, zero_division=0.0
        )
        assert [metrics[f"{kind}_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(
            [precision, recall, f1]
        )
    assert metrics["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(predictions.truth.ravel(), predictions.probabilities.ravel())
    )
    assert metrics["brier"] == pytest.approx(np.mean((predictions.probabilities - predictions.truth) ** 2))
    assert metrics["support/sun"] == predictions.truth[:, 0].sum()
    assert 0 < metrics["calibration_error"] < 0.5
    absent = replace(predictions, labels=predictions.labels * [1, 1, 0])
    without = compute_metrics(absent)
    assert f"average_precision/{NAMES[2]}" not in without
    assert without[f"support/{NAMES[2]}"] == 0
    assert without["mean_average_precision"] == pytest.approx(
        np.mean([without[f"average_precision/{name}"] for name in NAMES[:2]])
    )


def test_thresholds_maximise_f1_and_stay_one_half_for_few_images() -> None:
    random = np.random.default_rng(3)
    truth = random.random((300, 3)) < (0.3, 0.3, 0.02)
    scores = np.clip(0.2 * truth + random.normal(0.2, 0.08, truth.shape), 0.001, 0.999)
    thresholds = choose_thresholds(truth, scores)
    for label in (0, 1):
        best = max(sklearn.metrics.f1_score(truth[:, label], scores[:, label] >= t) for t in scores[:, label])
        assert sklearn.metrics.f1_score(truth[:, label], scores[:, label] >= thresholds[label]) == best
    assert 0.2 < thresholds[0] < 0.4
    assert thresholds[2] == 0.5  # too few (9) images have the label
    clear = np.where(truth, 0.9, 0.1)
    assert choose_thresholds(truth, clear).tolist() == [0.5] * 3
    predictions = answers(2.0).with_thresholds(np.array([0.0, 1.1, 0.5]))
    assert predictions.predicted[:, 0].all()
    assert not predictions.predicted[:, 1].any()


def test_predictions_read_from_the_csv_have_every_digit(tmp_path: Path) -> None:
    path, predictions = (
        tmp_path / "predictions.csv",
        answers(1.0, 20).with_thresholds(np.array([0.1, 0.9, 0.5])),
    )
    train = replace(predictions, split="train")
    write_predictions(path, [train, predictions])
    first, second = read_predictions(path)
    assert isinstance(second, MultiLabelPredictions)
    assert (first.split, second.split, second.class_names) == ("train", "validation", NAMES)
    assert np.array_equal(second.probabilities, predictions.probabilities)
    assert np.array_equal(second.predicted, predictions.predicted)
    assert compute_metrics(second) == compute_metrics(predictions)
    path.write_text(path.read_text().replace('"label:sun"', '"label:moon"'))
    with pytest.raises(UsageError, match="its columns are not"):
        read_predictions(path)


def test_loss_equals_keras_binary_crossentropy_with_smoothing_weights_and_mixing() -> None:
    random = np.random.default_rng(0)
    labels, logits = random.integers(0, 2, (8, 3)).astype(np.int32), random.normal(size=(8, 3))
    logits = tf.constant(logits, tf.float32)
    of_keras = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1, reduction=None)
    ones = tf.ones(3)
    expected = of_keras(tf.constant(labels, tf.float32), logits)
    np.testing.assert_allclose(MULTI.losses(labels, logits, ones, 0.1), expected, rtol=1e-5)
    weights = tf.constant([1.0, 5.0, 1.0])
    heavier = tf.nn.weighted_cross_entropy_with_logits(tf.cast(labels, tf.float32), logits, weights)
    np.testing.assert_allclose(
        MULTI.losses(labels, logits, weights, 0.0), tf.reduce_mean(heavier, axis=1), rtol=1e-5
    )
    # Mixing two losses equals the loss of mixed targets, as it is linear in the targets.
    other = labels[::-1]
    mixed = 0.3 * MULTI.losses(labels, logits, ones, 0.1) + 0.7 * MULTI.losses(other, logits, ones, 0.1)
    targets = tf.constant(0.3 * labels + 0.7 * other, tf.float32)
    np.testing.assert_allclose(mixed, of_keras(targets, logits), rtol=1e-5)
    chosen = np.asarray(logits) >= 0
    assert MULTI.hits(labels, logits).numpy().tolist() == (chosen == labels).all(axis=1).tolist()
    np.testing.assert_allclose(
        class_weights("balanced", NAMES, np.array([50, 20, 0]), MULTI, 100), [1.0, 4.0, 100.0]
    )
    assert class_weights("balanced", NAMES, np.array([50, 25, 25]), SINGLE).tolist() == pytest.approx(
        [100 / 150, 100 / 75, 100 / 75]
    )


def test_logistic_probe_is_fitted_separately_for_each_label() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(60, 4)).astype(np.float32)
    labels = (features @ random.normal(size=(4, 3)) + random.normal(size=(60, 3)) > 0.5).astype(np.int32)
    labels[:, 2] = 1
    probe = fit_label_probe(features, labels, np.ones(3), folds=2)
    logits = features @ probe.kernel + probe.bias
    losses, hits = evaluate_label_logits(logits, labels)
    assert ((logits[:, :2] > 0) == labels[:, :2]).mean() > 0.8
    assert (logits[:, 2] == 10).all()
    expected = MULTI.losses(labels, tf.constant(logits, tf.float32), tf.ones(3), 0.0)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)
    assert hits.tolist() == MULTI.hits(labels, tf.constant(logits)).numpy().tolist()
    assert probe.held_out is None  # no held-out logits for a label of all images
    halves = fit_label_probe(features, labels[:, :2], np.ones(2), folds=2)
    assert halves.held_out is not None
    assert 0.5 < compute_accuracy(halves.held_out, labels[:, :2]) <= 1


def test_best_epoch_has_the_highest_mean_average_precision() -> None:
    row = {"epoch": 1, "validation/accuracy": 0.2, "validation/mean_average_precision": 0.7}
    assert score(row, "validation", None) == 0.7
    assert score({"epoch": 1, "validation/accuracy": 0.2}, "validation", None) == 0.2
    predictions = answers(2.0)
    metrics = MULTI.validate(predictions.labels, predictions.probabilities)
    assert metrics["mean_average_precision"] == pytest.approx(
        compute_metrics(predictions)["mean_average_precision"]
    )
    assert metrics["loss"] == pytest.approx(compute_metrics(predictions)["log_loss"])
    nothing = MULTI.validate(np.zeros((2, 3), np.int32), np.full((2, 3), 0.1))
    assert nothing["accuracy"] == 1
    assert "mean_average_precision" not in nothing


def labelled_run(predictions: MultiLabelPredictions, name: str) -> Run:
    metrics = {f"validation/{key}": value for key, value in compute_metrics(predictions).items()}
    return Run(name, name, metrics, "validation", predictions, dataset={"digest": "sha256:1"})


def test_runs_are_compared_by_a_paired_bootstrap_of_mean_average_precision() -> None:
    weak, good, alike = answers(1.5), answers(4.0), answers(4.01)
    pair = compare_runs(labelled_run(weak, "weak"), labelled_run(good, "good"))
    gain = compute_metrics(good)["mean_average_precision"] - compute_metrics(weak)["mean_average_precision"]
    assert pair.accuracy.difference == pytest.approx(gain)
    assert pair.verdict.startswith("good is better by 0.")
    assert "of mean average precision" in pair.verdict
    assert pair.others["hamming_loss"].difference == pytest.approx(
        compute_metrics(good)["hamming_loss"] - compute_metrics(weak)["hamming_loss"]
    )
    assert pair.only_second == int(np.sum(good.right & ~weak.right))
    same = compare_runs(labelled_run(good, "good"), labelled_run(alike, "alike"))
    assert same.verdict.startswith("No significant difference")
    runs = [labelled_run(each, name) for each, name in ((weak, "a"), (good, "b"), (alike, "c"))]
    assert " adjusted for 2 comparisons" in compare_all(runs)[0].verdict
    assert as_values(runs, [pair])["comparisons"][0]["measure"] == "mean_average_precision"
    assert any(line.startswith("mean avg. precision") for line in table(runs[:2]))
    single = run_of(make_predictions("validation", NAMES, 5, 2.0), "single")
    with pytest.raises(UsageError, match="cannot be compared with one with several"):
        compare_runs(runs[0], single)


def test_release_requires_a_significant_gain_and_no_large_loss_of_a_label() -> None:
    champion, challenger = answers(1.5), answers(4.0)
    decision = decide(champion, challenger, 0.0, 0.05)
    assert decision.is_released
    assert decision.reason.startswith("its mean average precision is higher: +0.")
    assert "is not higher" in decide(challenger, champion, 0.0, 0.05).reason
    assert "below publish.min_gain (0.9)" in decide(champion, challenger, 0.9, 0.05).reason
    assert (
        "is not significant"
        in decide(champion.select(np.arange(8)), challenger.select(np.arange(8)), 0.0, 1.0).reason
    )
    swapped = replace(challenger, probabilities=challenger.probabilities * [1, 1, -1] + [0, 0, 1])
    strong = replace(champion, probabilities=np.column_stack(
        [answers(0).probabilities[:, :2], champion.probabilities[:, 2]]))  # fmt: skip
    paid = decide(strong, swapped, 0.0, 0.05)
    assert f"the average precision of {NAMES[2]} falls by 0." in paid.reason
    assert paid.worst_class == NAMES[2]
    assert "not significantly better than guessing" in why_guessing(answers(0))
    assert why_guessing(challenger) == ""
    wrong = replace(challenger, probabilities=1 - challenger.probabilities)
    assert "not significantly better than guessing" in decide(wrong, answers(0), 0.0, 1.0).reason


def test_predictions_are_aligned_to_one_order_of_images_and_labels() -> None:
    predictions = answers(2.0, 10)
    other = predictions.select(np.arange(10)[::-1]).with_classes(
        np.array([2, 0, 1], np.int32), (NAMES[2], *NAMES[:2])
    )
    back = in_order(other, predictions)
    assert isinstance(back, MultiLabelPredictions)
    assert (back.names, back.class_names) == (predictions.names, predictions.class_names)
    assert np.array_equal(back.labels, predictions.labels)
    assert np.array_equal(back.probabilities, predictions.probabilities)
    assert np.array_equal(back.predicted, predictions.predicted)


def test_labels_above_their_thresholds_are_sorted_by_probability() -> None:
    shares, thresholds = {"a": 0.4, "b": 0.9, "c": 0.6}, {"a": 0.3, "b": 0.5, "c": 0.7}
    assert list(labels_above(shares, thresholds).items()) == [("b", 0.9), ("a", 0.4)]
    assert labels_above({"a": 0.1}, {"a": 0.3}) == {}
