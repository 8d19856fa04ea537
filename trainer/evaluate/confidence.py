"""Calibration of a finished model: temperature of its probabilities, and rejection of unknown images.

What is reported about held-out images never comes from a calibration on the same images. With a backbone that
is frozen to the end, training images calibrate: by out-of-fold predictions and by cross-fitting, as their
features were not trained on them. Otherwise the held-out images calibrate, and each half of them is reported
with the calibration on the other half. The exported model is calibrated on all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset, Split
from trainer.data.items import THRESHOLDS
from trainer.evaluate.metrics import AnyPredictions, Predictions, compute_calibration
from trainer.evaluate.synthetic import make_unknown_images
from trainer.evaluate.unknown import (
    MOST_BYTES,
    MOST_POINTS,
    Chosen,
    choose_method,
    compute_scores,
    count_points,
    fit_detector,
)
from trainer.export.novelty import NoveltyDetector
from trainer.export.served import Confidence
from trainer.model.features import build_feature_model
from trainer.spec import RunSpec
from trainer.training.features import Features
from trainer.training.inference import Inference
from trainer.training.temperature import apply_temperature, fit_temperature

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

TEMPERATURE = "probe/temperature"
"""Entry of the history with the temperature that out-of-fold predictions of the training images give."""
_SYNTHETIC_IMAGES = 40
"""Images of each kind of synthetic image."""
_CHOICE_IMAGES = 1_000
"""Training images that choose the method."""
_MOST_CALIBRATION = 3_000


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Predictions and confidence of a calibrated model."""

    predictions: dict[str, AnyPredictions]
    """By split, with the temperature of the exported model."""
    confidence: Confidence
    metrics: dict[str, float]
    """By name, such as `validation/coverage`; see `describe_rejection` and `describe_temperature`."""
    known: dict[str, Floats] = field(default_factory=dict)
    """p-value of each image of the held-out splits, by split; NaN for images beyond the sample."""


def calibrate(
    spec: RunSpec,
    model: keras.Model,
    dataset: Dataset,
    predictions: Mapping[str, AnyPredictions],
    history: list[dict[str, Any]],
    features: Features | None = None,
    on_message: Callable[[str], None] = lambda message: None,
) -> Calibrated:
    """Return the calibrated predictions of `model`, the inference model, and its confidence.

    predictions: with a temperature of 1. history: rows of the training. features: of all splits, in memory,
    if the backbone is frozen to the end.
    """
    held_out = dataset.held_out
    temperature, metrics = _choose_temperature(spec, held_out, predictions, history)
    scaled = {name: with_temperature(split, temperature) for name, split in predictions.items()}
    if spec.export.reject_below is None:
        return Calibrated(scaled, Confidence(temperature), metrics)
    recognizer = _Recognizer(spec, model, dataset, features, on_message)
    fitted = recognizer.fit()
    if fitted is None:
        return Calibrated(scaled, Confidence(temperature), metrics)
    detector, selection, known = fitted
    for name, p_values in known.items():
        metrics |= describe_rejection(scaled[name], p_values, detector)
    return Calibrated(scaled, Confidence(temperature, detector, selection), metrics, known)


def with_temperature(predictions: AnyPredictions, temperature: float) -> AnyPredictions:
    """Return predictions with one label per image with their logits divided by `temperature`."""
    return _scale(predictions, temperature) if isinstance(predictions, Predictions) else predictions


def _scale(predictions: Predictions, temperature: float) -> Predictions:
    return replace(predictions, probabilities=apply_temperature(predictions.probabilities, temperature))


def describe_rejection(
    predictions: AnyPredictions, p_values: Floats, detector: NoveltyDetector
) -> dict[str, float]:
    """Return `SPLIT/coverage`, the share of accepted images, and `SPLIT/selective_accuracy`, their accuracy.

    p_values: [images]; images with NaN do not count. See El-Yaniv and Wiener, "On the Foundations of
    Noise-free Selective Classification", 2010, for the terms.
    """
    is_counted = ~np.isnan(p_values)
    is_accepted = is_counted & np.asarray(detector.is_accepted(np.nan_to_num(p_values)))
    figures = {f"{predictions.split}/coverage": float(is_accepted.sum() / is_counted.sum())}
    if is_accepted.any():
        figures[f"{predictions.split}/selective_accuracy"] = float(predictions.right[is_accepted].mean())
    return figures


def split_halves(split: Split) -> NDArray[np.bool_]:
    """Return which images belong to the first half, bool [images], by groups or a hash of their contents."""
    if split.groups is not None:
        return np.asarray(split.groups % 2 == 0)
    keys = split.contents or [hashlib.sha256(item.name.encode()).hexdigest() for item in split.items]
    return np.array([int(key[-8:], 16) % 2 == 0 for key in keys], bool)


def _choose_temperature(
    spec: RunSpec,
    held_out: Split,
    predictions: Mapping[str, AnyPredictions],
    history: list[dict[str, Any]],
) -> tuple[float, dict[str, float]]:
    """Return the temperature and its metrics: the calibration error before, and on images not fitted to."""
    basis = predictions[held_out.name]
    if not isinstance(basis, Predictions):
        return 1.0, {}
    fitted = next((row[TEMPERATURE] for row in history if TEMPERATURE in row), None)
    if spec.is_frozen and fitted is not None:
        temperature = float(fitted)
        honest = _scale(basis, temperature)
    else:
        temperature = fit_temperature(basis.probabilities, basis.labels)
        honest = _cross_fit_temperature(basis, split_halves(held_out))
    return temperature, {
        "calibration/temperature": temperature,
        f"{basis.split}/calibration_error_uncalibrated": compute_calibration(basis).error,
        f"{basis.split}/calibration_error_cross_fitted": compute_calibration(honest).error,
    }


def _cross_fit_temperature(predictions: Predictions, is_first: NDArray[np.bool_]) -> Predictions:
    probabilities = predictions.probabilities.copy()
    for half in (is_first, ~is_first):
        temperature = fit_temperature(predictions.probabilities[~half], predictions.labels[~half])
        probabilities[half] = apply_temperature(predictions.probabilities[half], temperature)
    return replace(predictions, probabilities=probabilities)


class _Recognizer:
    """Fit of the detector of one run."""

    def __init__(
        self,
        spec: RunSpec,
        model: keras.Model,
        dataset: Dataset,
        features: Features | None,
        on_message: Callable[[str], None],
    ) -> None:
        self._spec, self._dataset, self._on_message = spec, dataset, on_message
        both = build_feature_model(model)
        # Evaluation has filled the cache, unless it averages mirror images.
        self._cached = features if spec.is_frozen and not spec.model.average_mirror else None
        self._inference = Inference(keras.Model(both.inputs[0], both.outputs[0], name="features"))
        self._rng = np.random.default_rng(spec.seed)

    def fit(self) -> tuple[NoveltyDetector, dict[str, dict[str, float]], dict[str, Floats]] | None:
        """Return the detector, the figures that chose it, and the p-values by held-out split.

        Returns None with a message if it would be too large.
        """
        train, level = self._dataset.train, self._spec.export.reject_below
        names = [item.name for item in train.items]
        width = int(self._inference.model.output_shape[-1])
        order = self._rng.permutation(len(names))[:MOST_POINTS]
        points = count_points(width, [names[row] for row in order], len(self._dataset.class_names))
        if not points or level is None:
            self._on_message(
                f"The exported model accepts every image: {width:,} features per image are too many for a "
                f"reference set of {MOST_BYTES / 1e6:g} MB. A network with fewer features can reject images."
            )
            return None
        rows = np.sort(order[:points])
        features, labels = self._features_of(train, rows), train.labels[rows]
        groups = None if train.groups is None else train.groups[rows]
        chosen = self._choose(features, labels, rows, groups)
        used_names = [names[row] for row in rows]
        held_out = self._dataset.held_out
        calibration = None
        if not self._spec.is_frozen:
            plain = fit_detector(chosen.method, features, labels, used_names, level, np.zeros(0))
            calibration = self._scores_of(plain, held_out)
            used = calibration[~np.isnan(calibration)]
        detector = fit_detector(
            chosen.method, features, labels, used_names, level, None if calibration is None else used, groups
        )
        self._warn_of_few(len(detector.calibration), level)
        known = {}
        for name, split in self._dataset.splits.items():
            if name in ("train", THRESHOLDS):
                continue
            if calibration is not None and split is held_out:
                known[name] = _cross_fit_p_values(detector, calibration, split_halves(split))
            else:
                known[name] = p_values_of(detector, self._scores_of(detector, split))
        return detector, chosen.auroc, known

    def _choose(self, features: Array, labels: Any, rows: Rows, groups: Rows | None) -> Chosen:
        count = min(_SYNTHETIC_IMAGES, len(rows))
        sample = np.sort(self._rng.permutation(rows)[:count])
        images = make_unknown_images(self._dataset.train.pixels.gather(sample), self._spec.seed)
        unknown = {kind: self._inference.of_pixels(pixels) for kind, pixels in images.items()}
        part = np.sort(self._rng.permutation(len(rows))[:_CHOICE_IMAGES])
        own_groups = None if groups is None else groups[part]
        return choose_method(features[part], labels[part], unknown, self._spec.seed, own_groups)

    def _scores_of(self, detector: NoveltyDetector, split: Split) -> Floats:
        """Return the score of each image of `split`, NaN for images beyond a sample."""
        rows = np.sort(self._rng.permutation(len(split.items))[:_MOST_CALIBRATION])
        scores = np.full(len(split.items), np.nan)
        scores[rows] = compute_scores(detector.index, detector.neighbour, self._features_of(split, rows))
        return scores

    def _features_of(self, split: Split, rows: NDArray[np.int64]) -> Array:
        if self._cached is not None:
            return self._cached.of(split)[rows]
        batches = [rows[start : start + _GATHERED] for start in range(0, len(rows), _GATHERED)]
        return np.concatenate([self._inference.of_pixels(split.pixels.gather(batch)) for batch in batches])

    def _warn_of_few(self, images: int, level: float) -> None:
        if level and images + 1 < 1 / level:
            self._on_message(
                f"The exported model accepts every image: {images} images calibrate the rejection, but "
                f"export.reject_below={level:g} needs at least {int(np.ceil(1 / level)) - 1}."
            )


_GATHERED = 64
"""Images whose pixels are in memory at once."""


def p_values_of(detector: NoveltyDetector, scores: Floats) -> Floats:
    """Return the p-values of scores, [images]; NaN for NaN."""
    p_values = np.asarray(detector.p_values(np.nan_to_num(scores).astype(np.float32)), np.float64)
    return np.where(np.isnan(scores), np.nan, p_values)


def _cross_fit_p_values(detector: NoveltyDetector, scores: Floats, is_first: NDArray[np.bool_]) -> Floats:
    """Return p-values of which each half is calibrated on the other half."""
    p_values = np.full(len(scores), np.nan)
    for half in (is_first, ~is_first):
        other = scores[~half & ~np.isnan(scores)]
        part = replace(detector, calibration=np.sort(other).astype(np.float32))
        p_values[half] = p_values_of(part, scores[half])
    return p_values
