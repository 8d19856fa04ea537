"""Near-duplicate images: resized, re-encoded, mirrored or slightly cropped copies.

Candidates are the nearest neighbours by grey thumbnail, by mirrored thumbnail and, if there are any, by
features of a pretrained backbone. Each candidate pair is then aligned: the correlation of the details of
both thumbnails is maximised over small crops and mirror images of either one. Details are what remains
without local means, because images of clear sky or water are alike apart from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.image_store import Rows

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]

SIDE = 56
"""Height and width of the thumbnails in pixels."""
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_COARSE, _FINE = 14, 28
"""Sides of the thumbnails for the search and for the alignment."""
_NEIGHBOURS = 4
_SEARCHED, _SEARCHED_COSINE, _ALIGNED = 0.75, 0.85, 0.85
"""Least correlation of coarse thumbnails or least cosine of features of a candidate, and its least
correlation after a coarse alignment."""
_USUAL_RANK = 4
"""Rank of the neighbour whose distance is the usual one of different images, from 0."""
_SEQUENCE = 16
"""Images that are this close in the order of the names may be frames of one video."""
_LOCAL = 4
"""Side of the blocks whose means are not details, in pixels of the fine thumbnails."""
_FRACTIONS = (0.975, 0.95, 0.925)
_OFFSETS = (0.0, 0.5, 1.0)
_SAMPLE = 256
"""Pairs of different images whose distance is measured."""
_BLOCK = 1024
_PAIRS = 512
_WIDTH = 128
"""Dimensions to which features are reduced for the search."""
_CORRELATION = 0.85
"""Least correlation of the details of duplicates."""
_RATIO = 0.2
"""Their distance, 1 - correlation, is also less than this share of that of other similar images."""
_LEAST_CONTRAST = 2.0
"""Standard deviation of grey values below which a thumbnail is blank and matches everything."""


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are copies of one another."""

    rows: tuple[int, ...]
    """Indices of the images, in ascending order; at least two."""
    how: str
    """Difference of the closest pair: mirrored, cropped, mirrored and cropped, or resized or re-encoded."""


def build_thumbnails(pixels: Rows, count: int) -> NDArray[np.uint8]:
    """Return grey thumbnails, uint8 [count, SIDE, SIDE].

    pixels: uint8 [count, height, width, channels].
    """
    thumbnails = np.empty((count, SIDE, SIDE), np.uint8)
    pixels.prefetch(np.arange(count))
    for start in range(0, count, 64):
        rows = np.arange(start, min(start + 64, count))
        images = pixels.gather(rows).astype(np.float32)
        grey = images[..., :3] @ _GREY if images.shape[-1] >= 3 else images[..., 0]
        thumbnails[rows] = np.rint(_resize(grey, _area(grey.shape[1], SIDE), _area(grey.shape[2], SIDE)))
    return thumbnails


def find_near_duplicates(
    thumbnails: NDArray[np.uint8], features: NDArray[np.floating[Any]] | None = None
) -> list[DuplicateGroup]:
    """Return the groups of near-duplicates, by their first image.

    thumbnails: the result of `build_thumbnails`, in the order of the names. features: [images, width].
    """
    usable = np.flatnonzero(thumbnails.std(axis=(1, 2)) >= _LEAST_CONTRAST)
    if len(usable) < 2:
        return []
    thumbnails = thumbnails[usable]
    vectors = None if features is None else _unit(_reduce(features[usable]))
    coarse, mirrored = _describe_coarsely(thumbnails), _describe_coarsely(thumbnails[:, :, ::-1])
    different = _sample_similar_pairs(coarse, mirrored)
    usual = float(np.median(1 - _align(thumbnails, different)[0]))
    least = max(_CORRELATION, 1 - _RATIO * usual)
    pairs = _find_candidates(coarse, mirrored, vectors)
    pairs = pairs[_align(_shrink(thumbnails, _FINE), pairs, has_details=False)[0] >= _ALIGNED]
    correlations, variants = _align(thumbnails, pairs)
    is_duplicate = correlations >= least
    groups = _connect(pairs[is_duplicate], len(usable))
    best = {
        tuple(pair): (value, how)
        for pair, value, how in zip(pairs.tolist(), correlations, variants, strict=True)
    }
    return [DuplicateGroup(tuple(usable[group].tolist()), _describe(group, best)) for group in groups]


def _describe(group: NDArray[np.int64], best: dict[tuple[Any, ...], tuple[float, str]]) -> str:
    """Return the difference of the pair with the highest correlation within `group`."""
    members = group.tolist()
    pairs = [best[a, b] for a in members for b in members if (a, b) in best]
    return max(pairs)[1]


def _describe_coarsely(thumbnails: NDArray[np.uint8]) -> Floats:
    """Return thumbnails of _COARSE pixels per side as unit vectors, whose products are correlations."""
    return _unit(_shrink(thumbnails, _COARSE).reshape(len(thumbnails), -1), is_centred=True)


def _sample_similar_pairs(coarse: Floats, mirrored: Floats) -> Pairs:
    """Return up to about _SAMPLE pairs of images that are similar and probably no duplicates, [pairs, 2].

    Each is an image with its neighbour of _USUAL_RANK among those that are not close by name.
    """
    rows = np.arange(len(coarse))[:: max(1, len(coarse) // _SAMPLE)]
    similarities = np.maximum(coarse[rows] @ coarse.T, coarse[rows] @ mirrored.T)
    is_near = np.abs(np.arange(len(coarse)) - rows[:, None]) <= _SEQUENCE
    if (~is_near).sum(axis=1).min() <= _USUAL_RANK:  # too few images to leave any out
        is_near = np.arange(len(coarse)) == rows[:, None]
    similarities[is_near] = -2.0
    rank = min(_USUAL_RANK, len(coarse) - 2)
    return np.stack([rows, np.argpartition(-similarities, rank, axis=1)[:, rank]], axis=1)


def _find_candidates(coarse: Floats, mirrored: Floats, vectors: Floats | None) -> Pairs:
    """Return pairs of neighbours, by thumbnail or by features, [pairs, 2]; the smaller index comes first."""
    found: list[Pairs] = []
    for rows in _blocks(len(coarse)):
        similarities = np.maximum(coarse[rows] @ coarse.T, coarse[rows] @ mirrored.T)
        found.append(_nearest(similarities, rows, _SEARCHED))
        if vectors is not None:
            found.append(_nearest(vectors[rows] @ vectors.T, rows, _SEARCHED_COSINE))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _nearest(similarities: Floats, rows: NDArray[np.int64], least: float) -> Pairs:
    """Return the pairs of `rows` with their nearest neighbours of at least this similarity."""
    similarities[np.arange(len(rows)), rows] = -2.0
    count = min(_NEIGHBOURS, similarities.shape[1] - 1)
    nearest = np.argpartition(-similarities, count - 1, axis=1)[:, :count]
    is_similar = np.take_along_axis(similarities, nearest, axis=1) >= least
    return np.stack([np.repeat(rows, count), nearest.ravel()], axis=1)[is_similar.ravel()]


def _align(
    thumbnails: NDArray[Any], pairs: Pairs, has_details: bool = True
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the highest correlation of each pair over crops and mirror images of either one, and how.

    thumbnails: [images, side, side]. has_details: whether the details are correlated, or the grey values.
    """
    correlations, variants = np.zeros(len(pairs)), np.zeros(len(pairs), np.int64)
    windows = [*_windows(thumbnails.shape[1])]
    for start in range(0, len(pairs), _PAIRS):
        part = slice(start, start + _PAIRS)
        first, second = (thumbnails[pairs[part, side]].astype(np.float32) for side in (0, 1))
        scores = np.concatenate([
            _correlate(*images, window, has_details)
            for images in ((first, second), (second, first))
            for window in windows
        ])  # fmt: skip
        correlations[part], variants[part] = scores.max(axis=0), scores.argmax(axis=0)
    return correlations, [_name_variant(int(index), len(windows)) for index in variants]


def _name_variant(index: int, windows: int) -> str:
    window, is_mirrored = divmod(index, 2)
    names = ["mirrored"] * bool(is_mirrored) + ["cropped"] * bool(window % windows)
    return " and ".join(names) or "resized or re-encoded"


def _correlate(images: Floats, others: Floats, window: tuple[Floats, Floats], has_details: bool) -> Floats:
    """Return the correlations of a window of `images` with `others` and their mirror images, [2, pairs]."""
    cropped, whole = _resize(images, *window), _shrink(others, others.shape[1] // 2)
    views = [cropped, whole, np.ascontiguousarray(whole[:, :, ::-1])]
    if has_details:
        views = [_without_local_means(view) for view in views]
    units = [_unit(view.reshape(len(view), -1), is_centred=True) for view in views]
    return np.stack([np.einsum("ij,ij->i", units[0], unit) for unit in units[1:]])


def _without_local_means(images: Floats) -> Floats:
    """Return [images, side, side] less the means of blocks of _LOCAL pixels per side."""
    means = _shrink(images, images.shape[1] // _LOCAL)
    return np.asarray(images - means.repeat(_LOCAL, axis=1).repeat(_LOCAL, axis=2), np.float32)


def _windows(size: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield the matrices that cut a window out of a thumbnail and resize it to half its side, whole first."""
    yield _area(size, size // 2), _area(size, size // 2)
    for fraction in _FRACTIONS:
        sides = [_area(size, size // 2, offset * (1 - fraction), fraction) for offset in _OFFSETS]
        yield from ((vertical, horizontal) for vertical in sides for horizontal in sides)


def _connect(pairs: Pairs, count: int) -> list[NDArray[np.int64]]:
    """Return the connected components of at least two images."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers = connected_components(edges, directed=False)[1]
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def _blocks(count: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, count, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, count))


def _area(size: int, target: int, start: float = 0.0, fraction: float = 1.0) -> Floats:
    """Return the matrix [target, size] that averages areas of `fraction` of an axis, from `start` on."""
    edges = size * (start + fraction * np.linspace(0.0, 1.0, target + 1))
    cells = np.arange(size)
    lower = np.maximum(edges[:-1, None], cells)
    upper = np.minimum(edges[1:, None], cells + 1)
    weights = np.maximum(upper - lower, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _resize(images: Floats, vertical: Floats, horizontal: Floats) -> Floats:
    """Return float32 [images, *, *]: both axes multiplied by their matrices."""
    return np.asarray(vertical @ images @ horizontal.T, np.float32)


def _shrink(thumbnails: NDArray[Any], side: int) -> Floats:
    """Return thumbnails averaged over blocks, float32 [images, side, side]."""
    block = thumbnails.shape[1] // side
    blocks = thumbnails.reshape(len(thumbnails), side, block, side, block)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32))


def _unit(vectors: Floats, is_centred: bool = False) -> Floats:
    """Return the rows scaled to length 1, with `is_centred` after their mean is subtracted."""
    centred = vectors - vectors.mean(axis=1, keepdims=True) if is_centred else vectors
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9), np.float32)


def _reduce(features: NDArray[np.floating[Any]]) -> Floats:
    """Return unit features projected onto their first _WIDTH principal axes, which keeps their cosines."""
    unit = _unit(np.asarray(features, np.float32))
    if min(unit.shape) <= _WIDTH:
        return unit
    sample = unit[:: max(1, len(unit) // 5000)]
    axes = np.linalg.svd(sample.T @ sample / len(sample), hermitian=True)[0][:, :_WIDTH]
    return np.asarray(unit @ axes, np.float32)


__all__: Sequence[str] = ("SIDE", "DuplicateGroup", "build_thumbnails", "find_near_duplicates")
