"""Selection of examples for the report, and formatting of names and numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from trainer.evaluate.metrics import Predictions
from trainer.report.names import columns, format_duration, format_share, padded, shorten
from trainer.report.pictures import choose_correct, choose_mistakes
from trainer.report.plots import draw_confusion
from trainer.report.tables import top_confusions


def test_mistakes_are_sorted_by_confidence_and_correct_predictions_alternate_classes() -> None:
    rows = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.05, 0.95], [0.2, 0.8], [0.99, 0.01]])
    labels = np.array([0, 1, 0, 0, 1, 0], dtype=np.int32)
    held = Predictions("test", tuple("abcdef"), labels, rows, ("x", "y"))
    assert choose_mistakes(held, 2).tolist() == [3, 2]
    assert choose_correct(held, 3).tolist() == [5, 4, 0]


def test_top_confusions_are_the_largest_cells_off_the_diagonal() -> None:
    matrix = np.array([[50, 3, 0], [7, 40, 1], [0, 0, 10]])
    confusions = top_confusions(matrix, ("a", "b", "c"), 10)
    assert [(each.label, each.predicted, each.count) for each in confusions] == [
        ("b", "a", 7),
        ("a", "b", 3),
        ("b", "c", 1),
    ]
    assert confusions[0].share == pytest.approx(7 / 48)


def test_names_are_shortened_in_the_middle() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcde…hijk"
    assert shorten("two\nlines\u202e", 20) == "two lines"
    assert shorten("\0", 5) == "-"
    # Widths are those on a terminal.
    assert columns("ก็") == 1
    assert columns("❤\ufe0f") == 1
    assert shorten("e\u0301" * 50, 5) == "e\u0301e\u0301…e\u0301e\u0301"
    assert shorten("猫と犬の写真", 12) == "猫と犬の写真"
    assert shorten("猫と犬の写真", 8) == "猫と…真"
    assert padded(shorten("猫と犬の写真", 9), 10) == "猫と…写真 "


def test_shares_are_not_rounded_to_zero_or_one() -> None:
    assert [format_share(value) for value in (1.0, 0.9999, 0.9994, 0.0, 0.0004, None)] == [
        "1.000",
        ">0.999",
        "0.999",
        "0.000",
        "<0.001",
        "-",
    ]


def test_durations_are_formatted_with_one_or_two_units() -> None:
    assert [format_duration(value) for value in (47.6, 59.7, 1600.4, 11_100)] == [
        "48 s",
        "1 min 00 s",
        "26 min 40 s",
        "3 h 05 min",
    ]


@pytest.mark.parametrize("classes", [21, 100, 151, 1000, 4321])
def test_axis_numbers_of_large_confusion_matrix_do_not_overlap(classes: int) -> None:
    names = tuple(map(str, range(classes)))
    figure = draw_confusion(np.eye(classes, dtype=np.int64), names)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for labels, side in ((axes.get_xticklabels(), 0), (axes.get_yticklabels(), 1)):
        spans = sorted(
            (box.min[side], box.max[side]) for box in (each.get_window_extent() for each in labels)
        )
        assert len(spans) > 2
        assert all(one[1] + 2 < other[0] for one, other in pairwise(spans))
