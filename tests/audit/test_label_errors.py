"""Suspected label errors and outliers on drawn features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.audit.label_errors import find_far_images, find_label_errors

Floats = NDArray[np.float32]


def clusters(count: int = 150, classes: int = 3) -> tuple[Floats, NDArray[np.int64]]:
    chance = np.random.default_rng(0)
    labels = np.arange(count) % classes
    centres = chance.normal(0, 1.0, (classes, 40))
    return (centres[labels] + chance.normal(0, 0.4, (count, 40))).astype(np.float32), labels


def test_planted_errors_come_first_and_are_probable() -> None:
    features, labels = clusters()
    wrong = [3, 50, 101]
    labels[wrong] = (labels[wrong] + 1) % 3
    suspects = find_label_errors(features, labels, np.arange(150) < 120)
    assert suspects is not None
    assert sorted(suspect.row for suspect in suspects[:3]) == wrong
    assert sum(suspect.is_probable for suspect in suspects[:3]) >= 2
    assert not any(suspect.is_probable for suspect in suspects[3:])
    assert [suspect.suggested for suspect in suspects[:3]] == [suspect.row % 3 for suspect in suspects[:3]]


def test_held_out_image_is_judged_by_the_training_images() -> None:
    features, labels = clusters()
    labels[140] = (labels[140] + 1) % 3
    suspects = find_label_errors(features, labels, np.arange(150) < 120)
    assert suspects is not None
    assert suspects[0].row == 140


def test_copies_of_a_wrong_image_do_not_vouch_for_each_other_if_they_are_one_group() -> None:
    features, labels = clusters(90)
    copies = (
        np.repeat(features[:1], 15, axis=0) + np.float32(0.001) * np.arange(15, dtype=np.float32)[:, None]
    )
    everything = np.concatenate([features, copies])
    wrong = np.concatenate([labels, np.full(15, 1)])
    groups = np.concatenate([np.arange(90), np.full(15, 90)])
    is_train = np.ones(105, bool)
    grouped = find_label_errors(everything, wrong, is_train, groups)
    assert grouped is not None
    ungrouped = find_label_errors(everything, wrong, is_train)
    assert ungrouped is not None
    probability = {suspect.row: suspect.label_probability for suspect in grouped}
    assert all(probability[row] < 0.5 for row in range(90, 105))
    alone = {suspect.row: suspect.label_probability for suspect in ungrouped}
    assert all(probability[row] < 0.8 * alone.get(row, 1.0) for row in range(90, 105))


def test_too_few_images_or_classes_are_not_checked() -> None:
    features, labels = clusters()
    everything = np.ones(150, bool)
    assert find_label_errors(features, np.zeros(150, np.int64), everything) is None
    assert find_label_errors(features[:10], labels[:10], everything[:10]) is None
    assert find_label_errors(features[:0], labels[:0], everything[:0]) is None


def test_image_unlike_its_class_is_an_outlier() -> None:
    features, labels = clusters()
    features[7] = -features[7]
    far = find_far_images(features, labels)
    assert far[0].row == 7
    assert len(far) < 6
