"""Recognition of unknown images: p-values, methods, limits of size, and the calibration of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_training import SMALL, dark_and_light, learner_for, split

from trainer.data.dataset import Dataset
from trainer.errors import UsageError
from trainer.evaluate.confidence import calibrate, describe_rejection, p_values_of, split_halves
from trainer.evaluate.evaluator import Evaluator, predict_splits
from trainer.evaluate.metrics import Predictions, compute_calibration
from trainer.evaluate.synthetic import make_unknown_images
from trainer.evaluate.unknown import (
    METHODS,
    MOST_BYTES,
    choose_method,
    compute_auroc,
    compute_scores,
    count_points,
    cross_fitted_scores,
    fit_detector,
    fit_index,
)
from trainer.export.novelty import Method, NoveltyDetector
from trainer.spec import RunSpec, load_spec
from trainer.training.probe import fit_probe
from trainer.training.temperature import FEWEST_IMAGES, apply_temperature, fit_temperature

WIDTH = 12


def blobs(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return features of two classes, and their labels; `shift` moves them along an unused direction."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    features = 0.3 * rng.normal(size=(count, WIDTH)) * np.linspace(1, 0.2, WIDTH)
    features[:, 0] += np.where(labels == 0, 2.0, 1.0)
    features[:, 1] += labels
    features[:, -1] += shift
    return features.astype(np.float32), labels


def detector_of(features: np.ndarray, labels: np.ndarray, level: float, method: Method) -> NoveltyDetector:
    names = [f"train/{row}.jpg" for row in range(len(features))]
    return fit_detector(method, features, labels, names, level)


@pytest.mark.parametrize("method", METHODS)
def test_coverage_is_within_two_standard_errors_of_the_level_over_100_splits(method: Method) -> None:
    level, shares = 0.1, []
    for seed in range(100):
        features, labels = blobs(200, seed)
        detector = detector_of(features[:60], labels[:60], level, method)
        calibration = compute_scores(detector.index, detector.neighbour, features[60:160])
        detector = replace(detector, calibration=np.sort(calibration).astype(np.float32))
        scores = compute_scores(detector.index, detector.neighbour, features[160:])
        shares.append(1 - np.mean(detector.is_accepted(p_values_of(detector, scores))))
    # With 100 calibration images, 10 of 101 ranks are rejected.
    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - level) < 2 * error
    assert error < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_cross_fitted_calibration_keeps_the_level_and_rejects_other_images(method: Method) -> None:
    rejected = []
    for seed in range(30):
        features, labels = blobs(150, seed)
        detector = detector_of(features[:50], labels[:50], 0.1, method)
        scores = compute_scores(detector.index, detector.neighbour, features[50:])
        rejected.append(1 - np.mean(detector.is_accepted(p_values_of(detector, scores))))
    assert 0.05 < np.mean(rejected) < 0.15
    other = compute_scores(detector.index, detector.neighbour, blobs(50, 1, shift=2.0)[0])
    assert not np.asarray(detector.is_accepted(p_values_of(detector, other))).any()


def test_p_value_counts_calibration_images_that_are_at_least_as_novel() -> None:
    features, labels = blobs(40, 0)
    scores = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    detector = replace(detector_of(features, labels, 0.4, "neighbour"), calibration=scores)
    p_values = np.asarray(detector.p_values(np.array([0.0, 0.2, 0.25, 0.4, 0.5, np.nan], np.float32)))
    np.testing.assert_allclose(p_values, [1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
    assert np.asarray(detector.is_accepted(p_values)).tolist() == [True, True, True, True, False, False]
    everything = replace(detector, calibration=np.zeros(0, np.float32))
    assert np.asarray(everything.p_values(np.array([9.0], np.float32))).tolist() == [1.0]


def test_level_zero_rejects_nothing_and_level_one_is_an_error() -> None:
    features, labels = blobs(60, 0)
    detector = detector_of(features, labels, 0.0, "neighbour")
    scores = compute_scores(detector.index, detector.neighbour, blobs(20, 1, shift=9.0)[0])
    p_values = p_values_of(detector, scores)
    assert p_values.max() < 0.05
    assert np.asarray(detector.is_accepted(p_values)).all()
    assert load_spec(settings=["export.reject_below=0"]).export.reject_below == 0
    assert load_spec(settings=["export.reject_below=null"]).export.reject_below is None
    for value in ("1", "1.0"):
        with pytest.raises(UsageError, match="would reject every image"):
            load_spec(settings=[f"export.reject_below={value}"])
    for value in ("-0.1", "1.5", "true"):
        with pytest.raises(UsageError, match="reject_below"):
            load_spec(settings=[f"export.reject_below={value}"])


def test_distance_to_the_tenth_neighbour_equals_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    features, labels = blobs(200, 0)
    index, neighbour = fit_index("neighbour", features, labels)
    assert neighbour == 10
    assert index.projection.shape == (WIDTH, WIDTH)  # all components: the residual is zero
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    other, _ = blobs(30, 1)
    others = other / np.linalg.norm(other, axis=1, keepdims=True)
    expected = NearestNeighbors(n_neighbors=10).fit(rows).kneighbors(others)[0][:, -1]
    np.testing.assert_allclose(np.sqrt(compute_scores(index, neighbour, other)), expected, rtol=1e-3)


def test_nearest_names_are_those_of_the_nearest_training_images() -> None:
    features, labels = blobs(50, 0)
    for method in METHODS:
        detector = detector_of(features, labels, 0.05, method)
        names, distances = detector.nearest(features[7:8], 3)
        assert names.numpy()[0, 0] == b"train/7.jpg"
        assert distances.shape == (1, 3)
        assert float(distances[0, 0]) < 1e-2


def test_method_is_chosen_by_synthetic_images_and_left_out_classes() -> None:
    features, labels = blobs(200, 0)
    unknown = {"far": blobs(40, 2, shift=5.0)[0], "near": blobs(40, 3, shift=0.2)[0]}
    chosen = choose_method(features, labels, unknown, seed=0)
    values = {
        method: (np.mean([figures["far"], figures["near"]]) + figures["left_out"]) / 2
        for method, figures in chosen.auroc.items()
    }
    assert chosen.method == max(METHODS, key=lambda method: values[method])
    assert chosen.auroc[chosen.method]["far"] > 0.95
    one_class = choose_method(features, np.zeros(200, np.int64), unknown, seed=0)
    assert "left_out" not in one_class.auroc["neighbour"]
    several = choose_method(features, np.ones((200, 3), np.int32), unknown, seed=0)
    assert several.auroc == one_class.auroc  # several labels per image are one class


def test_auroc_equals_scikit_learn_with_ties() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 9, 50).astype(float), rng.integers(3, 12, 30).astype(float)
    truth = np.repeat([0, 1], [50, 30])
    expected = roc_auc_score(truth, np.concatenate([known, unknown]))
    assert compute_auroc(known, unknown) == pytest.approx(expected)


def test_reference_set_that_does_not_fit_is_reduced_or_refused() -> None:
    short, long = ["a.jpg"] * 3000, ["x" * 5000] * 3000
    assert count_points(1280, short, 2) == 3000
    assert 500 < count_points(1280, long, 2) < 1000
    assert count_points(1280, ["x" * 1_000_000] * 3000, 2) == 0
    assert count_points(100_000, short, 2) == 0
    assert count_points(8, ["a.jpg"] * 3, 2) == 3
    features = np.random.default_rng(0).normal(size=(3000, 1280)).astype(np.float32)
    for method in METHODS:
        detector = fit_detector(method, features, np.arange(3000) % 10, short, 0.05, np.zeros(3000))
        assert detector.bytes < MOST_BYTES


def test_few_images_without_variance_give_finite_scores() -> None:
    for features in (np.ones((2, 4)), np.zeros((5, 4)), np.eye(4)):
        rows = features.astype(np.float32)
        for method in METHODS:
            detector = detector_of(rows, np.arange(len(rows)) % 2, 0.05, method)
            scores = compute_scores(detector.index, detector.neighbour, rows)
            assert np.isfinite(scores).all()
            assert np.isfinite(cross_fitted_scores(method, rows, np.arange(len(rows)) % 2)).all()


def test_synthetic_images_depend_on_pixels_and_seed_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 1)).astype(np.uint8)
    first, second = make_unknown_images(images, 0), make_unknown_images(images, 0)
    assert set(first) == {"noise", "texture", "spectrum", "shuffled", "mixed"}
    for kind, pixels in first.items():
        assert (pixels.shape, pixels.dtype) == (images.shape, np.uint8)
        assert (pixels == second[kind]).all()
        assert (pixels != make_unknown_images(images, 1)[kind]).any(), kind
        assert (pixels != images).any(axis=(1, 2, 3)).all(), kind


def test_temperature_repairs_overconfident_probabilities_and_keeps_the_classes() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random(4000)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    confident = apply_temperature(truth, 1 / 3)
    temperature = fit_temperature(confident, labels)
    assert temperature == pytest.approx(3.0, rel=0.1)
    repaired = apply_temperature(confident, temperature)
    assert (repaired.argmax(axis=1) == confident.argmax(axis=1)).all()
    np.testing.assert_allclose(repaired.sum(axis=1), 1.0)

    def error(probabilities: np.ndarray) -> float:
        predictions = Predictions("validation", ("",) * 4000, labels, probabilities, ("a", "b", "c"))
        return compute_calibration(predictions).error

    assert error(repaired) < 0.03 < 0.1 < error(confident)
    assert fit_temperature(confident[: FEWEST_IMAGES - 1], labels[: FEWEST_IMAGES - 1]) == 1.0
    certain = np.array([[1.0, 0.0]] * 60)
    assert np.isfinite(apply_temperature(certain, fit_temperature(certain, np.zeros(60, int)))).all()


def trained(spec: RunSpec, dataset: Dataset, messages: list[str]):  # type: ignore[no-untyped-def]
    model = learner_for(spec, dataset).fill_inference_model()
    predictions = predict_splits(Evaluator(model), dataset)
    for name, part in predictions.items():
        # An untrained network has no confidence to scale.
        logits = np.random.default_rng(0).normal(0, 3, (len(part.labels), 2)) + 2 * np.eye(2)[part.labels]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        predictions[name] = replace(part, probabilities=probabilities)
    return predictions, calibrate(spec, model, dataset, predictions, [], None, messages.append)


def test_held_out_images_are_reported_with_the_calibration_on_the_other_half() -> None:
    spec, dataset = load_spec(settings=SMALL), dark_and_light()
    dataset = replace(
        dataset, splits={"train": split("train", 44, 0), "validation": split("validation", 120, 1)}
    )
    messages: list[str] = []
    predictions, calibrated = trained(spec, dataset, messages)
    detector = calibrated.confidence.detector
    assert detector is not None
    assert messages == []
    assert (len(detector.calibration), len(detector.names)) == (120, 44)
    halves = split_halves(dataset.held_out)
    assert 40 < halves.sum() < 80
    # The smallest p-value of a half is 1 / (1 + images of the other half).
    known = calibrated.known["validation"]
    for half in (halves, ~halves):
        ranks = known[half] * (1 + (~half).sum())
        np.testing.assert_allclose(ranks, ranks.round(), atol=1e-3)
    metrics = calibrated.metrics
    assert 0.8 < metrics["validation/coverage"] <= 1.0
    assert metrics["calibration/temperature"] == calibrated.confidence.temperature != 1.0
    scaled = calibrated.predictions["validation"]
    assert (scaled.right == predictions["validation"].right).all()
    probabilities = predictions["validation"].probabilities.copy()
    for half in (halves, ~halves):
        labels = dataset.held_out.labels[~half]
        probabilities[half] = apply_temperature(
            probabilities[half], fit_temperature(predictions["validation"].probabilities[~half], labels)
        )
    honest = compute_calibration(replace(scaled, probabilities=probabilities)).error
    assert metrics["validation/calibration_error_cross_fitted"] == honest
    assert honest != compute_calibration(scaled).error


def test_too_few_calibration_images_are_reported_and_accept_everything() -> None:
    messages: list[str] = []
    _, calibrated = trained(load_spec(settings=SMALL), dark_and_light(), messages)
    assert len(messages) == 1
    assert "accepts every image: 12 images calibrate" in messages[0]
    assert "needs at least 19" in messages[0]
    assert calibrated.metrics["validation/coverage"] == 1.0
    assert calibrated.confidence.temperature == 1.0
    null = load_spec(settings=[*SMALL, "export.reject_below=null"])
    assert trained(null, dark_and_light(), messages)[1].confidence.detector is None


def test_figures_of_rejection_count_accepted_images() -> None:
    features, labels = blobs(40, 0)
    detector = detector_of(features, labels, 0.5, "neighbour")
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    predictions = Predictions("test", ("a",) * 4, np.array([0, 1, 0, 1], np.int32), probabilities, ("x", "y"))
    figures = describe_rejection(predictions, np.array([0.9, 0.6, 0.1, np.nan]), detector)
    assert figures == {"test/coverage": 2 / 3, "test/selective_accuracy": 0.5}
    nothing = describe_rejection(predictions, np.zeros(4), detector)
    assert nothing == {"test/coverage": 0.0}


def test_split_halves_follow_contents_not_order(tmp_path: Path) -> None:
    contents = [f"{row:064x}" for row in range(10)]
    whole = replace(split("validation", 10, 0), contents=contents)
    turned = replace(whole, contents=contents[::-1])
    assert (split_halves(whole) == split_halves(turned)[::-1]).all()


def test_temperature_is_one_where_nothing_limits_it() -> None:
    right = np.tile([0.7, 0.3], (100, 1))
    assert fit_temperature(right, np.zeros(100, np.int64)) == 1.0
    labels = np.zeros(100, np.int64)
    labels[:30] = 1
    assert fit_temperature(right, labels) == pytest.approx(1.0, abs=0.01)
    labels[:30] = 0
    labels[:2] = 1
    assert fit_temperature(right, labels) < 0.5


def test_image_without_a_fold_has_no_part_in_the_temperature() -> None:
    chance = np.random.default_rng(0)
    labels = np.append(np.arange(80) % 2, 2)
    features = np.eye(3)[labels] + chance.normal(0, 0.5, (81, 3))
    probe = fit_probe(features, labels, np.ones(3), 5)
    assert probe.is_tested is not None
    assert probe.is_tested.tolist() == [True] * 80 + [False]


@pytest.mark.parametrize("method", METHODS)
def test_images_of_one_group_do_not_calibrate_each_other(method: Method) -> None:
    chance = np.random.default_rng(0)
    videos = chance.normal(size=(30, 40))
    frames = (np.repeat(videos, 12, axis=0) + chance.normal(0, 0.01, (360, 40))).astype(np.float32)
    classes, groups = np.zeros(360, np.int64), np.repeat(np.arange(30), 12)
    alone = cross_fitted_scores(method, frames, classes)
    together = cross_fitted_scores(method, frames, classes, groups)
    assert np.median(together) > 1.05 * np.median(alone)
