"""Slices: accuracy of a model on parts of the evaluated images, such as small, dark or one camera's.

Each slice is compared with all other images. The p-values of all slices of all properties are corrected
together, so that with any number of slices a false finding has a probability of at most 5%.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.audit.measures import Measures
from trainer.evaluate.metrics import wilson_interval
from trainer.evaluate.significance import LEVEL, holm

MIN_IMAGES = 20
"""Slices with fewer images are left out."""
BINS = 4
"""Number of quantile bins of a continuous property."""
MAX_VALUES = 20
"""Maximum number of values of a property with texts; the most frequent ones are used."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Part of the evaluated images, with the accuracy of the model on it."""

    name: str
    """Property, such as 'brightness'."""
    value: str
    """Such as '0.12 to 0.31', or the text that the images have in common."""
    rows: NDArray[np.int64]
    """Numbers of its images, ascending."""
    right: int
    """Number of correct predictions."""
    accuracy: float
    interval: tuple[float, float]
    """95% interval of the accuracy (Wilson)."""
    difference: float
    """Accuracy minus that of all other images, -1..1."""
    p_value: float
    """Fisher's exact test against all other images, two-sided, corrected over all slices (Holm)."""

    @property
    def is_worse(self) -> bool:
        """Whether the accuracy is significantly below that of all other images."""
        return self.p_value < LEVEL and self.difference < 0

    @property
    def sentence(self) -> str:
        """For a user."""
        low, high = self.interval
        return (
            f"{self.name} {self.value}: accuracy {self.accuracy:.3f} ({low:.3f} to {high:.3f}) on "
            f"{len(self.rows)} images, {abs(self.difference):.3f} "
            f"{'below' if self.difference < 0 else 'above'} all others."
        )


def compute_slices(is_right: NDArray[np.bool_], properties: Mapping[str, NDArray[Any]]) -> list[Slice]:
    """Return the accuracy on each slice, the worst first: significantly worse ones, then by accuracy.

    is_right: bool [N], whether the prediction for each image is correct. properties: values by name, each
    [N]. Numbers with more than 4 different values are cut at their quartiles; other values, texts and
    integers make one slice each. Missing values (NaN, "", -1 of an integer) belong to no slice. A property
    with a single slice, and slices with fewer than 20 images or of all images, are left out.
    """
    parts = [
        (name, value, rows)
        for name, values in properties.items()
        for value, rows in _cut(np.asarray(values))
        if MIN_IMAGES <= len(rows) < len(is_right)
    ]
    counts = [(int(is_right[rows].sum()), len(rows)) for _, _, rows in parts]
    total = (int(is_right.sum()), len(is_right))
    p_values = holm([_p_of_slice(*count, *total) for count in counts]) if counts else []
    slices = []
    for (name, value, rows), (right, count), p_value in zip(parts, counts, p_values, strict=True):
        others = (total[0] - right) / (total[1] - count)
        accuracy = right / count
        interval = wilson_interval(right, count)
        slices.append(Slice(name, value, rows, right, accuracy, interval, accuracy - others, p_value))
    return sorted(slices, key=lambda part: (not part.is_worse, part.accuracy, part.name, part.value))


def slice_properties(measures: Measures, noise_groups: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Return the properties of images by which they are sliced, each [N].

    noise_groups: as `NoiseGroups.groups`, or None to leave them out.
    """
    properties: dict[str, Any] = {
        "shorter side": np.minimum(measures.width, measures.height),
        "aspect ratio": measures.width / measures.height,
        "brightness": measures.brightness,
        "contrast": measures.contrast,
        "sharpness": measures.sharpness,
        "file size in kB": measures.file_bytes / 1000,
        "format": measures.format,
        "camera": measures.camera,
        "folder": measures.source,
    }
    return properties if noise_groups is None else properties | {"noise group": noise_groups}


def _cut(values: NDArray[Any]) -> list[tuple[str, NDArray[np.int64]]]:
    """Return text and rows of each slice of one property."""
    if values.dtype.kind == "f":
        return _cut_numbers(np.asarray(values, np.float64))
    is_known = np.ones(len(values), bool)
    if values.dtype.kind in "US":
        is_known = values != ""
    elif values.dtype.kind == "i":
        is_known = values >= 0
    return _by_value(values, is_known)


def _cut_numbers(values: NDArray[np.float64]) -> list[tuple[str, NDArray[np.int64]]]:
    is_known = np.isfinite(values)
    known = values[is_known]
    if len(np.unique(known)) <= BINS:
        return _by_value(values, is_known)
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)))
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return [
        (f"{edges[number]:.4g} to {edges[number + 1]:.4g}", np.flatnonzero(is_known & (bins == number)))
        for number in range(len(edges) - 1)
    ]


def _by_value(values: NDArray[Any], is_known: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.int64]]]:
    distinct, counts = np.unique(values[is_known], return_counts=True)
    frequent = distinct[np.argsort(-counts, kind="stable")[:MAX_VALUES]]
    return [
        (
            f"{value:.4g}" if values.dtype.kind == "f" else str(value),
            np.flatnonzero(is_known & (values == value)),
        )
        for value in frequent
    ]


def _p_of_slice(right: int, count: int, all_right: int, total: int) -> float:
    """Return the p-value of Fisher's exact test of a slice against all other images."""
    from scipy import stats

    table = [[right, count - right], [all_right - right, total - all_right - count + right]]
    return float(stats.fisher_exact(table).pvalue)
