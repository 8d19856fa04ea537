"""Noise groups: images whose residual has similar statistics, found by a Gaussian mixture.

The groups show how files were processed: sensor noise that was never removed, added noise, strong
compression, dead pixels. Two cameras cannot be distinguished after resizing or compression, which remove the
pattern of the sensor; pictures from the web carry no fingerprint of their camera. Kinds of noise that form a
continuum, as JPEG at neighbouring qualities, are one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.audit.residual import NOISE_NAMES, SCALES
from trainer.evaluate.significance import holm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_COMPONENTS = 8
MAX_DIP = 0.5
"""Two components are one group unless their density falls to this share of the lower peak between them."""
_FLOOR = 0.15
"""Standard deviation that is added to each feature. Features have a fixed scale, not that of the data set, so
that small differences are not magnified in a data set without noise."""
_MIN_IMAGES = 50
_MAX_IMAGES = 5_000
"""Number of images that the mixture is fitted to; larger data sets are sampled."""
_MIN_EXPECTED = 5.0
"""Minimum expected count of a cell for the approximation of the G test (Cochran 1954)."""
_FEWEST_TABLES, _MOST_CELLS = 999, 10_000_000
"""Fewer tables are drawn if they would have more cells in all."""
_TABLES = 9_999

_SIGMAS = tuple(range(0, 3 * SCALES, SCALES))
_KURTOSES = tuple(number for number, name in enumerate(NOISE_NAMES) if name.startswith("kurtosis"))
_ISOLATED, _BLOCKINESS = NOISE_NAMES.index("isolated pixels"), NOISE_NAMES.index("blockiness")


@dataclass(frozen=True, eq=False)
class NoiseGroups:
    """Groups of N images with similar noise."""

    groups: Ints
    """[N], the number of the group, 0 is the largest; -1 for images without noise statistics."""
    texts: tuple[str, ...]
    """Description of each group."""
    components: int
    """Number of components of the mixture, chosen by BIC; overlapping components form one group."""

    @property
    def is_distinct(self) -> bool:
        """Whether there is more than one group."""
        return len(self.texts) > 1


@dataclass(frozen=True)
class Association:
    """Dependence of the noise groups on another property of the images, such as the class."""

    name: str
    p_value: float
    """Of the G test of independence, corrected over all properties (Holm)."""
    cramers_v: float
    """Strength in 0..1: 0 is independent, 1 is determined (Cramer 1946)."""


def find_noise_groups(noise: NDArray[np.floating[Any]]) -> NoiseGroups:
    """Return the groups of images by their noise statistics, float [N, len(NOISE_NAMES)], as of `Measures`.

    A Gaussian mixture with 1 to 8 components is fitted, with full or diagonal covariances, whichever has the
    lowest BIC (Schwarz 1978). The components approximate groups of any shape, so those without a gap between
    them are merged, a ridgeline method of Hennig (2010), "Methods for merging Gaussian mixture components".
    Below 50 images there is one group.
    """
    from sklearn.mixture import GaussianMixture

    is_known = np.isfinite(noise).all(axis=1)
    features = noise_features(noise[is_known])
    sample = np.random.default_rng(0).permutation(len(features))[:_MAX_IMAGES]
    distinct = len(np.unique(features[sample], axis=0))
    groups = np.where(is_known, 0, -1)
    if len(features) < _MIN_IMAGES or distinct == 1:
        return _describe_groups(groups, noise, 1)
    models = [
        GaussianMixture(
            count, covariance_type=form, reg_covar=_FLOOR**2, n_init=2, max_iter=500, random_state=0
        ).fit(features[sample])
        for form in ("full", "diag")  # the latter for few images: it has a fifth of the parameters
        for count in range(1, min(MAX_COMPONENTS, distinct) + 1)
    ]
    best = min(models, key=lambda model: model.bic(features[sample]))
    groups[is_known] = _merge_components(best)[best.predict(features)]
    return _describe_groups(groups, noise, int(best.n_components))


def noise_features(noise: NDArray[np.floating[Any]]) -> Floats:
    """Return the features of the mixture, float64 [N, 8]: logarithms of the noise statistics.

    Of the sigmas only those of single pixels are used, because larger scales show the content. The offsets
    hide differences that have no effect: sigmas far below 2 of 255, and fewer than 0.5% isolated pixels.
    """
    values = np.asarray(noise, np.float64)
    return np.concatenate(
        [
            np.log(values[:, _SIGMAS] + 2),
            np.log(values[:, [_ISOLATED]] + 0.005) / 2,
            np.log(values[:, [_BLOCKINESS]]),
            np.log(values[:, _KURTOSES]) / 4,
        ],
        axis=1,
    )


def _merge_components(model: Any) -> Ints:
    """Return the group of each component, int64 [K]: components without a gap between them are connected."""
    from scipy.sparse import csgraph

    count = model.n_components
    is_connected = np.array(
        [
            [first == other or _dip(model, first, other) > MAX_DIP for other in range(count)]
            for first in range(count)
        ]
    )
    return np.asarray(csgraph.connected_components(is_connected)[1], np.int64)


def _dip(model: Any, first: int, other: int) -> float:
    """Return the lowest density between two components, as a share of that at the lower of their means.

    The density is that of both components on the discriminant axis of Fisher (1936).
    """
    pair = [first, other]
    weights, means, covariances = model.weights_[pair], model.means_[pair], model.covariances_[pair]
    if model.covariance_type == "diag":
        covariances = np.stack([np.diag(variances) for variances in covariances])
    axis = np.linalg.solve(np.tensordot(weights, covariances, 1), means[1] - means[0])
    start, end = means @ axis
    deviations = np.sqrt([axis @ covariance @ axis for covariance in covariances])
    points = np.linspace(start, end, 101)[:, None]
    scores = (points - np.array([start, end])) / deviations
    density = (weights / deviations * np.exp(-(scores**2) / 2)).sum(axis=1)
    return float(density.min() / min(density[0], density[-1]))


def _describe_groups(groups: Ints, noise: NDArray[np.floating[Any]], components: int) -> NoiseGroups:
    """Number the groups by size, and describe each."""
    present, counts = np.unique(groups[groups >= 0], return_counts=True)
    order = present[np.argsort(-counts, kind="stable")]
    numbers = np.full(len(groups), -1, np.int64)
    for number, group in enumerate(order):
        numbers[groups == group] = number
    texts = tuple(describe_noise(noise[numbers == number]) for number in range(len(order)))
    return NoiseGroups(numbers, texts, components)


def describe_noise(noise: NDArray[np.floating[Any]]) -> str:
    """Return a text on the medians of some images' noise statistics, float [n, len(NOISE_NAMES)]."""
    medians = np.median(noise, axis=0)
    sigma, colour_sigma = medians[_SIGMAS[0]], medians[_SIGMAS[1]]
    isolated, grid = medians[_ISOLATED], medians[_BLOCKINESS]
    parts = [f"noise of {sigma:.1f} in brightness and {colour_sigma:.1f} in colour (of 255)"]
    if isolated > 0.005:
        parts.append(f"{isolated:.1%} isolated pixels")
    if grid > 1.5:
        parts.append(f"JPEG blocks {grid:.1f} times the contrast between other pixels")
    return ", ".join(parts)


def compare_groups(groups: Ints, properties: Mapping[str, NDArray[Any]]) -> list[Association]:
    """Return the dependence of the groups, int [N], on properties such as class and split, each [N].

    Images of group -1 are left out. The result is empty if there is only one group; properties with one value
    are left out. The p-value is that of the G test, with tables drawn at the same margins where expected
    counts are below 5.
    """
    is_known = groups >= 0
    if len(np.unique(groups[is_known])) < 2:
        return []
    tables = {name: _table(groups[is_known], values[is_known]) for name, values in properties.items()}
    tables = {name: table for name, table in tables.items() if table.shape[1] > 1}
    p_values = holm([_p_of_independence(table) for table in tables.values()]) if tables else []
    return [
        Association(name, p_value, _cramers_v(table))
        for (name, table), p_value in zip(tables.items(), p_values, strict=True)
    ]


def _table(groups: Ints, values: NDArray[Any]) -> Ints:
    """Return the number of images of each group and value, int64 [groups, values]."""
    _, rows = np.unique(groups, return_inverse=True)
    distinct, columns = np.unique(values, return_inverse=True)
    count = len(distinct)
    shape = (int(rows.max()) + 1, count)
    return np.asarray(
        np.bincount(rows * count + columns, minlength=shape[0] * count).reshape(shape), np.int64
    )


def _expected(table: NDArray[Any]) -> Floats:
    rows, columns = table.sum(axis=-1, keepdims=True), table.sum(axis=-2, keepdims=True)
    return np.asarray(rows * columns / table.sum(axis=(-2, -1), keepdims=True), np.float64)


def _g_statistic(tables: NDArray[Any]) -> Floats:
    """Return the G statistic of each table, [..., R, C] -> [...]."""
    from scipy import special

    return np.asarray(2 * special.rel_entr(tables, _expected(tables)).sum(axis=(-2, -1)))


def _p_of_independence(table: Ints) -> float:
    from scipy import special, stats

    observed = _g_statistic(table)
    if _expected(table).min() >= _MIN_EXPECTED:
        return float(special.chdtrc((table.shape[0] - 1) * (table.shape[1] - 1), observed))
    tables = min(_TABLES, max(_FEWEST_TABLES, _MOST_CELLS // table.size))
    drawn = stats.random_table(table.sum(axis=1), table.sum(axis=0)).rvs(
        tables, random_state=np.random.default_rng(0)
    )
    return (1 + int(np.sum(_g_statistic(drawn) >= observed - 1e-9))) / (1 + tables)


def _cramers_v(table: Ints) -> float:
    expected = _expected(table)
    chi_square = float(((table - expected) ** 2 / expected).sum())
    return float(np.sqrt(chi_square / table.sum() / (min(table.shape) - 1)))
