"""Shortcuts: whether file properties that have nothing to do with the content reveal the class.

A small classifier sees only measures, never the image, and its cross-validated accuracy is compared with the
share of the largest class. Fields are technical (file size, format, compression, camera, ...) or related to
the content (colours, brightness, sharpness); only technical ones are called a shortcut. A network can use
them too, and then fails on images from elsewhere (Geirhos et al. 2020, "Shortcut learning in deep neural
networks").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.audit.measures import Measures
from trainer.data.items import normalized
from trainer.evaluate.metrics import wilson_interval
from trainer.evaluate.significance import LEVEL, holm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
_EFFECTIVE = (1 / FOLDS) / (1 / FOLDS + 1 / (FOLDS - 1))
"""Factor of the number of images in tests and intervals: the models of cross-validation share training
images, so that its results vary more than those on independent images (Nadeau and Bengio 2003)."""
MIN_GAIN = 0.1
"""Minimum accuracy above chance to speak of a shortcut; smaller ones are real, but of little use to a
network."""
MIN_SEPARATION = 0.5
"""The same for a single class: its recall minus the share of other images that are taken for it."""
_MAX_IMAGES = 5_000
"""Larger data sets are sampled, the same number of images in each call."""
_MAX_VALUES = 30
"""Maximum number of different values of a text that are distinguished, the most frequent ones."""
_MAX_LEAVES = 16
_TREES = 20
FILE_SIZE = "file size"
"""Not among the technical fields together: with the size in pixels it gives the bytes per pixel, which
measure how much detail an image shows."""
_FRAME_SHARE = 0.9
"""Minimum share of a border line with one colour, if it is part of a frame."""


class Field(NamedTuple):
    """Columns that belong together, for N images."""

    name: str
    is_technical: bool
    columns: Floats
    """[N, K]; NaN is a missing value."""


@dataclass(frozen=True)
class FieldResult:
    """How well one field, or all fields of a kind, predict the class."""

    name: str
    is_technical: bool
    accuracy: float
    """Cross-validated, 0..1."""
    interval: tuple[float, float]
    """95% interval of the accuracy (Wilson)."""
    p_value: float
    """Of the accuracy against chance and of the best class against independence, corrected over all."""
    class_label: int
    """The class that is separated best."""
    separation: float
    """Recall of this class minus the share of other images that are taken for it, -1..1."""
    is_claimed: bool
    """Whether the effect is significant and large enough to be reported."""


@dataclass(frozen=True)
class Shortcuts:
    """Result of `find_shortcuts`."""

    chance: float
    """Share of the largest class."""
    images: int
    """Number of images that were used."""
    technical: FieldResult
    """All technical fields together."""
    content: FieldResult
    """All content fields together."""
    fields: tuple[FieldResult, ...]
    """Single fields, those with the highest accuracy first; fields with a single value are left out."""

    @property
    def claimed(self) -> tuple[FieldResult, ...]:
        """The shortcuts: technical fields, strongest first; all of them together if no single one is."""
        single = tuple(field for field in self.fields if field.is_technical and field.is_claimed)
        return single or ((self.technical,) if self.technical.is_claimed else ())

    def sentences(self, class_names: Sequence[str]) -> list[str]:
        """Return one sentence for each shortcut and each content field that reveals the class."""
        content = [field for field in self.fields if not field.is_technical and field.is_claimed]
        return [self._sentence(field, class_names) for field in (*self.claimed, *content)]

    def _sentence(self, field: FieldResult, class_names: Sequence[str]) -> str:
        start = "Shortcut: the" if field.is_technical else "The"
        low, high = field.interval
        text = (
            f"{start} {field.name} alone predicts the class with accuracy {field.accuracy:.3f} "
            f"({low:.3f} to {high:.3f}); chance is {self.chance:.3f}."
        )
        if len(class_names) > 2:
            text += f' It separates the class "{class_names[field.class_label]}" best.'
        return text


def find_shortcuts(measures: Measures, labels: Ints, class_names: Sequence[str]) -> Shortcuts | None:
    """Return how well metadata predict the class; None if there are too few images to cross-validate.

    labels: int [N], indices of `class_names`. Images that cannot be read and classes with fewer than 5 images
    are left out. Each class has the same share of every fold, and the folds are the same in each call. The
    p-values are of the binomial test against the largest class and of Fisher's test for the best class,
    doubled for the two tests and corrected over all fields (Holm). Tests and intervals count only 4/9 of the
    images, because cross-validated predictions are not independent.
    """
    rows = _choose_rows(measures, labels)
    kept = np.unique(labels[rows])
    if len(kept) < 2:
        return None
    chosen, targets = measures.take(rows), np.searchsorted(kept, labels[rows])
    fields = [
        field for field in build_fields(chosen, [class_names[label] for label in kept]) if _varies(field)
    ]
    folds = _assign_folds(targets)
    technical_fields = [field for field in fields if field.is_technical and field.name != FILE_SIZE]
    groups = [
        _join("technical properties together", technical_fields, len(rows)),
        _join(
            "visible properties together", [field for field in fields if not field.is_technical], len(rows)
        ),
    ]
    predictions = [_cross_validate(field.columns, targets, folds, _TREES) for field in groups]
    predictions += [_cross_validate(field.columns, targets, folds, 1) for field in fields]
    technical, content, *single = _judge([*groups, *fields], predictions, targets, kept)
    single.sort(key=lambda result: -result.accuracy)
    chance = float(np.bincount(targets).max() / len(targets))
    return Shortcuts(chance, len(targets), technical, content, tuple(single))


def _choose_rows(measures: Measures, labels: Ints) -> Ints:
    """Return the rows that are used: readable, of a class with enough images, at most `_MAX_IMAGES`."""
    rows = np.flatnonzero(measures.is_readable)
    if len(rows) > _MAX_IMAGES:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:_MAX_IMAGES])
    values, counts = np.unique(labels[rows], return_counts=True)
    return np.asarray(rows[np.isin(labels[rows], values[counts >= FOLDS])], np.int64)


def _assign_folds(targets: Ints) -> Ints:
    """Return the fold of each image, 0..4, with each class spread evenly, int64 [N]."""
    order = np.random.default_rng(0).permutation(len(targets))
    folds = np.empty(len(targets), np.int64)
    for label in np.unique(targets):
        own = order[targets[order] == label]
        folds[own] = (np.arange(len(own)) + label) % FOLDS
    return folds


def _varies(field: Field) -> bool:
    columns = np.where(np.isnan(field.columns), -1.0, field.columns)
    return bool(columns.size) and bool((columns != columns[:1]).any())


def _join(name: str, fields: Sequence[Field], images: int) -> Field:
    """Return one field with all columns of `fields`, and a constant one in case there are none."""
    columns = [np.zeros((images, 1)), *(field.columns for field in fields)]
    return Field(name, name.startswith("technical"), np.concatenate(columns, axis=1))


def build_fields(measures: Measures, class_names: Sequence[str]) -> list[Field]:
    """Return all fields of the images, the most specific first."""
    width, height = (np.asarray(side, np.float64) for side in (measures.width, measures.height))
    size = measures.file_bytes
    technical: dict[str, list[NDArray[Any]]] = {
        "JPEG quality": [measures.jpeg_quality],
        "quantization tables": [*_indicators(measures.jpeg_table)],
        "file format": [*_indicators(measures.format)],
        "EXIF camera": [*_indicators(measures.camera)],
        "EXIF date": [*_date_columns(measures.taken)],
        "EXIF orientation": [measures.orientation],
        "folder": [*_indicators(folders_below(measures.source, class_names))],
        "frame": [*_frame_columns(measures)],
        "width": [width],
        "height": [height],
        "aspect ratio": [width / height],
        "number of pixels": [width * height],
        FILE_SIZE: [size],
    }
    content: dict[str, list[NDArray[Any]]] = {
        "bytes per pixel": [size / (width * height)],
        "mean colour": [*measures.colour.T],
        "brightness": [measures.brightness],
        "contrast": [measures.contrast],
        "sharpness": [measures.sharpness],
    }
    return [
        Field(name, is_technical, np.stack([np.asarray(column, np.float64) for column in columns], axis=1))
        for is_technical, named in ((True, technical), (False, content))
        for name, columns in named.items()
    ]


def _indicators(values: NDArray[Any]) -> list[Floats]:
    """Return a column of 0 and 1 for each of the most frequent values, each [N]."""
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_MAX_VALUES]
    return [np.asarray(inverse == number, np.float64) for number in frequent[: max(1, len(distinct))]]


def _date_columns(taken: NDArray[np.datetime64]) -> list[Floats]:
    """Return the date in days and the hour of the day, NaN where there is no date."""
    is_missing = np.isnat(taken)
    seconds = np.where(is_missing, np.nan, taken.astype("M8[s]").astype(np.int64).astype(np.float64))
    return [seconds / 86_400, seconds % 86_400 / 3_600]


def _frame_columns(measures: Measures) -> list[Floats]:
    """Return the number of sides with a line of one colour, and its colour, NaN without any."""
    is_flat = np.asarray(measures.border_share) >= _FRAME_SHARE
    weights = np.where(is_flat, 1.0, 0.0)
    count = weights.sum(axis=1)
    total = (np.nan_to_num(measures.border_colour) * weights[:, :, None]).sum(axis=1)
    colour = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)
    return [count, *colour.T]


def folders_below(source: NDArray[np.str_], class_names: Sequence[str]) -> NDArray[np.str_]:
    """Return the part of each folder that may say where an image comes from.

    It is the part below the folder with the name of a class; the whole path without it, if no class folder
    is in the path. For example "siteA" for "train/cats/siteA".
    """
    names = {normalized(name).casefold() for name in class_names}
    cache: dict[str, str] = {}
    for folder in np.unique(source):
        parts = str(folder).split("/")
        last = max(
            (number for number, part in enumerate(parts) if normalized(part).casefold() in names), default=-1
        )
        cache[str(folder)] = "/".join(parts[last + 1 :])
    return np.array([cache[str(folder)] for folder in source], np.str_)


def _cross_validate(columns: Floats, targets: Ints, folds: Ints, trees: int) -> Ints:
    """Return the class predicted for each image by a model that was fitted to the other folds, int64 [N]."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    options: dict[str, Any] = {
        "max_leaf_nodes": _MAX_LEAVES,
        "min_samples_leaf": max(2, min(20, len(targets) // 50)),
        "random_state": 0,
    }
    predicted = np.zeros(len(targets), np.int64)
    values = columns.astype(np.float32)
    for fold in range(FOLDS):
        is_held_out = folds == fold
        model = DecisionTreeClassifier(**options) if trees == 1 else RandomForestClassifier(trees, **options)
        model.fit(values[~is_held_out], targets[~is_held_out])
        predicted[is_held_out] = model.predict(values[is_held_out])
    return predicted


def _judge(
    fields: Sequence[Field], predictions: Sequence[Ints], targets: Ints, kept: Ints
) -> list[FieldResult]:
    """Return the result of each field, with p-values corrected over all of them."""
    separations = [_separate(predicted, targets) for predicted in predictions]
    p_values = holm(
        [
            min(1.0, 2 * min(_p_of_accuracy(predicted, targets), p_of_class))
            for predicted, (_, _, p_of_class) in zip(predictions, separations, strict=True)
        ]
    )
    chance = float(np.bincount(targets).max() / len(targets))
    results = []
    for field, predicted, (label, separation, _), p_value in zip(
        fields, predictions, separations, p_values, strict=True
    ):
        right = int(np.sum(predicted == targets))
        accuracy = right / len(targets)
        is_large = accuracy - chance >= MIN_GAIN or separation >= MIN_SEPARATION
        results.append(
            FieldResult(
                name=field.name,
                is_technical=field.is_technical,
                accuracy=accuracy,
                interval=_interval_of(accuracy, len(targets)),
                p_value=p_value,
                class_label=int(kept[label]),
                separation=separation,
                is_claimed=is_large and p_value < LEVEL,
            )
        )
    return results


def _interval_of(accuracy: float, images: int) -> tuple[float, float]:
    count = max(1, round(images * _EFFECTIVE))
    return wilson_interval(round(accuracy * count), count)


def _p_of_accuracy(predicted: Ints, targets: Ints) -> float:
    """Return the p-value of at least this accuracy, if all images were predicted as the largest class."""
    from scipy import special

    count = max(1, round(len(targets) * _EFFECTIVE))
    right = math.floor(count * float(np.mean(predicted == targets)))
    chance = np.bincount(targets).max() / len(targets)
    return float(special.bdtrc(right - 1, count, chance)) if right else 1.0


def _separate(predicted: Ints, targets: Ints) -> tuple[int, float, float]:
    """Return the class that is separated best, how well, and Fisher's p-value corrected over the classes."""
    from scipy import stats

    classes, count = int(targets.max()) + 1, len(targets)
    matrix = np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)
    own, taken, hits = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    separation = hits / own - (taken - hits) / np.maximum(count - own, 1)
    best = int(separation.argmax())
    numbers = [math.floor(_EFFECTIVE * number) for number in (hits[best], count, own[best], taken[best])]
    p_value = stats.hypergeom.sf(numbers[0] - 1, *numbers[1:])
    return best, float(separation[best]), min(1.0, classes * float(p_value))
