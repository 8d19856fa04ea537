"""Metrics compared with values computed by hand, and recomputed from predictions.csv."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from trainer.errors import DataError, UsageError
from trainer.evaluate.metrics import (
    Predictions,
    compute_calibration,
    compute_metrics,
    confusion_matrix,
    wilson_interval,
)
from trainer.evaluate.prediction_files import read_predictions, write_predictions


def predictions(
    labels: list[int],
    rows: list[list[float]],
    class_names: tuple[str, ...] = ("cats", "dogs"),
    split: str = "validation",
) -> Predictions:
    return Predictions(
        split=split,
        names=tuple(f"{split}/{number}.jpg" for number in range(len(labels))),
        labels=np.array(labels, dtype=np.int32),
        probabilities=np.array(rows, dtype=np.float64).reshape(len(labels), len(class_names)),
        class_names=class_names,
    )


def random_predictions(count: int, classes: int, seed: int = 0) -> Predictions:
    """Return random predictions that are mostly right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) * 2
    logits[np.arange(count), labels] += 2
    rows = np.exp(logits)
    rows /= rows.sum(axis=1, keepdims=True)
    return predictions(labels.tolist(), rows.tolist(), tuple(f"class {i}" for i in range(classes)))


FOUR = predictions([0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])


def test_binary_metrics_match_hand_computed_values() -> None:
    metrics = compute_metrics(FOUR)
    assert metrics["count"] == 4
    assert metrics["correct"] == 3
    assert metrics["accuracy"] == 0.75
    assert metrics["log_loss"] == pytest.approx(-(math.log(0.9 * 0.4 * 0.8 * 0.7)) / 4)
    assert metrics["brier"] == pytest.approx((0.1**2 + 0.6**2 + 0.2**2 + 0.3**2) / 4)
    # Both dogs rank above both cats: 0.8 and 0.7 against 0.1 and 0.6.
    assert metrics["roc_auc"] == 1.0
    # Each prediction has its own bin: 0.9 right, 0.6 wrong, 0.8 right, 0.7 right.
    assert metrics["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4)
    assert (metrics["precision/cats"], metrics["recall/cats"]) == (1.0, 0.5)
    assert (metrics["precision/dogs"], metrics["recall/dogs"]) == pytest.approx((2 / 3, 1.0))
    assert (metrics["f1/cats"], metrics["f1/dogs"]) == pytest.approx((2 / 3, 0.8))
    assert (metrics["support/cats"], metrics["support/dogs"]) == (2, 2)
    assert metrics["macro_recall"] == 0.75
    assert metrics["macro_precision"] == pytest.approx(5 / 6)
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)


def test_binary_auc_is_of_the_second_class() -> None:
    metrics = compute_metrics(predictions([0, 1, 1], [[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]]))
    assert metrics["roc_auc"] == 0.5


def test_metrics_of_three_classes_match_hand_computed_values() -> None:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]]
    metrics = compute_metrics(predictions([0, 1, 2], rows, ("a", "b", "c")))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["log_loss"] == pytest.approx(-math.log(0.7 * 0.6 * 0.2) / 3)
    squares = (0.09 + 0.04 + 0.01) + (0.01 + 0.16 + 0.09) + (0.25 + 0.09 + 0.64)
    assert metrics["brier"] == pytest.approx(squares / 3)
    # One-vs-rest: a 0.7 above 0.1 and 0.5; b 0.6 above 0.2 and 0.3; c 0.2 above 0.1, below 0.3.
    assert metrics["roc_auc"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert metrics["precision/c"] == 0.0
    assert metrics["recall/c"] == 0.0


def test_interval_is_the_wilson_interval() -> None:
    for correct, count in ((924, 1000), (1, 3), (0, 7), (7, 7), (71_200, 100_000)):
        expected = binomtest(correct, count).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    # The bounds stay within [0, 1]; the normal approximation has zero width here.
    assert wilson_interval(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)
    assert wilson_interval(0, 5) == pytest.approx((0.0, 0.4345), abs=1e-4)


def test_calibration_bins_are_closed_on_the_right() -> None:
    # 0.6 = 9/15 is the upper edge of bin 8, counted from 0; any larger value is in bin 9.
    rows = [[0.6, 0.4], [0.58, 0.42], [0.61, 0.39], [1.0, 0.0]]
    calibration = compute_calibration(predictions([0, 1, 0, 0], rows))
    assert calibration.count.tolist() == [2, 1, 1]
    assert calibration.confidence == pytest.approx([0.59, 0.61, 1.0])
    assert calibration.accuracy == pytest.approx([0.5, 1.0, 1.0])
    assert calibration.error == pytest.approx((2 * 0.09 + 0.39 + 0) / 4)


def test_confusion_matrix_has_true_classes_in_rows() -> None:
    assert confusion_matrix(FOUR).tolist() == [[1, 1], [0, 2]]


def test_confusion_matrix_has_a_row_for_a_class_without_images() -> None:
    matrix = confusion_matrix(predictions([0, 2], [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], ("a", "b", "c")))
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_split_of_one_class_has_no_roc_auc() -> None:
    metrics = compute_metrics(predictions([0, 0], [[0.8, 0.2], [0.3, 0.7]]))
    assert "roc_auc" not in metrics
    assert metrics["accuracy"] == 0.5
    assert all(math.isfinite(value) for value in metrics.values())


def test_class_without_images_is_excluded_from_the_means() -> None:
    rows = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]]
    metrics = compute_metrics(predictions([0, 1, 1], rows, ("a", "b", "c")))
    assert metrics["support/c"] == 0
    assert not {"precision/c", "recall/c", "f1/c"} & set(metrics)
    assert metrics["macro_recall"] == 0.75
    assert metrics["roc_auc"] == 1.0


def test_one_image_has_metrics() -> None:
    metrics = compute_metrics(predictions([1], [[0.25, 0.75]]))
    assert metrics["accuracy"] == 1.0
    assert metrics["accuracy_low"] == pytest.approx(0.2065, abs=1e-4)
    assert metrics["log_loss"] == pytest.approx(-math.log(0.75))


def test_confident_wrong_prediction_has_a_finite_log_loss() -> None:
    metrics = compute_metrics(predictions([0, 1], [[0.0, 1.0], [0.0, 1.0]]))
    assert metrics["log_loss"] == pytest.approx(-math.log(np.finfo(np.float64).eps) / 2)


def test_float32_probabilities_are_accepted() -> None:
    exact = random_predictions(500, 7)
    rounded = Predictions(
        exact.split,
        exact.names,
        exact.labels,
        exact.probabilities.astype(np.float32).astype(np.float64),
        exact.class_names,
    )
    assert compute_metrics(rounded) == pytest.approx(compute_metrics(exact), abs=1e-5)


def test_no_images_is_an_error() -> None:
    with pytest.raises(DataError, match=r"Received: 0 images in the test split"):
        compute_metrics(predictions([], [], split="test"))


def test_every_image_counts_once() -> None:
    metrics = compute_metrics(random_predictions(997, 5))
    assert sum(value for name, value in metrics.items() if name.startswith("support/")) == 997
    assert metrics["accuracy"] == metrics["correct"] / 997
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]


@pytest.mark.parametrize("classes", [2, 10])
def test_metrics_from_the_csv_are_equal_to_the_last_digit(tmp_path: Path, classes: int) -> None:
    first, second = random_predictions(300, classes, seed=1), random_predictions(200, classes, seed=2)
    second = Predictions("train", second.names, second.labels, second.probabilities, second.class_names)
    write_predictions(tmp_path / "predictions.csv", [second, first])
    read = read_predictions(tmp_path / "predictions.csv")
    assert [each.split for each in read] == ["train", "validation"]
    for before, after in zip((second, first), read, strict=True):
        assert compute_metrics(after) == compute_metrics(before)
        assert after.names == before.names
        assert np.array_equal(after.probabilities, before.probabilities)


def test_csv_has_the_documented_columns(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.csv", [FOUR])
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == '"split","path","label","predicted","probability:cats","probability:dogs"'
    assert lines[2] == '"validation","validation/1.jpg","cats","dogs",0.4,0.6'
    assert len(lines) == 5


ODD = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


# Each example writes a file and syncs it.
FEW = settings(max_examples=25, deadline=None)


@FEW
@given(names=st.lists(ODD, min_size=2, max_size=4, unique=True), path=ODD)
def test_csv_preserves_any_class_name_and_path(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], path: str
) -> None:
    file = tmp_path_factory.mktemp("csv") / "predictions.csv"
    rows = np.full((1, len(names)), 1 / len(names))
    before = Predictions("test", (path,), np.array([1], dtype=np.int32), rows, tuple(names))
    write_predictions(file, [before])
    (after,) = read_predictions(file)
    assert after.class_names == before.class_names
    assert after.names == before.names
    assert after.labels.tolist() == [1]


def test_path_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_predictions(
        tmp_path / "p.csv",
        [Predictions("test", (name,), np.array([0], dtype=np.int32), np.array([[0.5, 0.5]]), ("a", "b"))],
    )
    assert read_predictions(tmp_path / "p.csv")[0].names == ("caf\\udce9.jpg",)


@FEW
@given(arrays(np.float64, (3, 2), elements=st.floats(0, 1)))
def test_csv_preserves_every_digit(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> None:
    file = tmp_path_factory.mktemp("csv") / "predictions.csv"
    write_predictions(file, [predictions([0, 1, 0], rows.tolist())])
    assert np.array_equal(read_predictions(file)[0].probabilities, rows)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "its columns are not split, path, label, predicted"),
        ("a,b\n1,2\n", "its columns are not"),
        ("split,path,label,predicted,probability:a\ntest,x.jpg,a,a\n", "row 2 has 4 cells"),
        ("split,path,label,predicted,probability:a\ntest,x.jpg,a,a,much\n", "could not convert"),
        ("split,path,label,predicted,probability:a\ntest,x.jpg,b,a,1.0\n", "the label 'b' has no column"),
    ],
)
def test_invalid_csv_is_rejected_with_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=reason) as error:
        read_predictions(file)
    assert str(error.value).endswith(f"Received: {file}")


def test_missing_csv_is_rejected_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_predictions(tmp_path / "predictions.csv")
