"""Sequences of similar images in the order of their names, such as the frames of a video.

A random split puts neighbouring frames into training and validation, which makes the accuracy too high.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST = 20
"""Minimum number of neighbouring pairs."""
_CORRELATION = 0.6
"""Least correlation of the thumbnails of neighbouring frames."""
_EXCESS = 0.3
"""Least difference between the medians for neighbours by name and for other images of the folder."""
_DISTANCE = 50
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Sequences:
    """Sequences of at least two similar images that are neighbours by name."""

    rows: tuple[tuple[int, ...], ...]
    """Numbers of the images of each sequence, in the order of their names."""
    across: int
    """Number of sequences with images in training and in a held-out split."""
    correlation: float
    """Median correlation of neighbours by name."""
    usual_correlation: float
    """Median correlation of images of the same folder that are far apart by name."""


def find_sequences(
    thumbnails: NDArray[np.uint8], names: Sequence[str], is_train: NDArray[np.bool_]
) -> Sequences | None:
    """Return the sequences of frames, or None if neighbours by name are not much more similar than others.

    thumbnails: [images, side, side]. is_train: bool [images].
    """
    vectors = _describe(thumbnails)
    folders = _order_by_folder(names)
    pairs = [(one, other) for rows in folders for one, other in itertools.pairwise(rows)]
    far = [(one, other) for rows in folders for one, other in zip(rows, rows[_DISTANCE:], strict=False)] or [
        (one, other) for rows in folders for one, other in zip(rows, rows[len(rows) // 2 :], strict=False)
    ]
    if len(pairs) < _FEWEST:
        return None
    near_values, far_values = _correlate(vectors, pairs), _correlate(vectors, far)
    near, usual = float(np.median(near_values)), float(np.median(far_values))
    if near < _CORRELATION or near - usual < _EXCESS:
        return None
    rows = _join(pairs, near_values >= (near + usual) / 2)
    across = sum(len(set(is_train[list(sequence)].tolist())) > 1 for sequence in rows)
    return Sequences(rows, across, near, usual)


def _order_by_folder(names: Sequence[str]) -> list[list[int]]:
    """Return the images of each folder, with split folders taken together, in the natural order of names."""
    folders: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        folders[name.rpartition("/")[0].rpartition("/")[2]].append(row)
    return [
        sorted(rows, key=lambda row: _natural_key(names[row].rpartition("/")[2])) for rows in folders.values()
    ]


def _natural_key(name: str) -> list[Any]:
    texts = _NUMBER.split(name)
    numbers = [int(number) for number in _NUMBER.findall(name)]
    return [part for pair in zip(texts, [*numbers, 0], strict=True) for part in pair]


def _describe(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return thumbnails of a quarter of the size as unit vectors, whose products are correlations."""
    side = thumbnails.shape[1] // 4
    blocks = thumbnails.reshape(len(thumbnails), side, 4, side, 4).mean(axis=(2, 4), dtype=np.float32)
    flat = blocks.reshape(len(thumbnails), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6), np.float32)


def _correlate(vectors: NDArray[np.float32], pairs: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    rows = np.asarray(pairs, np.int64).reshape(-1, 2)
    return np.asarray(np.einsum("ij,ij->i", vectors[rows[:, 0]], vectors[rows[:, 1]]))


def _join(pairs: Sequence[tuple[int, int]], is_similar: NDArray[np.bool_]) -> tuple[tuple[int, ...], ...]:
    """Return the chains of similar neighbours; `pairs` of one folder follow one another."""
    sequences: list[list[int]] = []
    for (one, other), similar in zip(pairs, is_similar.tolist(), strict=True):
        if similar and sequences and sequences[-1][-1] == one:
            sequences[-1].append(other)
        elif similar:
            sequences.append([one, other])
    return tuple(map(tuple, sequences))
