"""SavedModel that maps encoded images to labels.

It has the signatures `serving_default` for encoded images and `pixels` for decoded ones, and two assets:
labels.txt, one class per line, and model.json, which has the versions and image settings of the model, the
temperature of its probabilities and, with several labels per image, the threshold of each. With a novelty
detector, it also has the signature `nearest`, and model.json describes the detector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from trainer import __version__
from trainer.data.decode_batch import decode_batch
from trainer.errors import TemporaryError
from trainer.export.novelty import NoveltyDetector
from trainer.model.features import build_feature_model
from trainer.spec import DataSpec
from trainer.storage.temporary import temporary_folder
from trainer.training.objective import Objective, get_objective

FORMAT_VERSION = 3
"""Version of model.json. Before version 3, a bad image is an error of the whole batch."""
SINGLE_LABEL_VERSION, MULTI_LABEL_VERSION = 1, 2
"""Earlier versions, which are read too. A reader of version 1 alone must not take a model with several labels
per image for one with a single label."""
NEAREST_COUNT = 5
"""Number of training images in the answers of the signature `nearest`."""


@dataclass(frozen=True)
class Confidence:
    """How sure a served model is of its answers."""

    temperature: float = 1.0
    """Divisor of the logits; 1 with several labels per image."""
    detector: NoveltyDetector | None = None
    """Rejects images that are unlike the training images; None if no image is rejected."""
    selection: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """AUROC by method and by kind of image, by which the method of the detector was chosen."""


@dataclass(frozen=True)
class _Shared:
    """Functions that the signatures share. As attributes of the module they would be saved once more."""

    decode: tf.types.experimental.ConcreteFunction
    infer: tf.types.experimental.ConcreteFunction


class ServedModel(tf.Module):  # type: ignore[misc]
    """The inference model with decoding before it and labels after it."""

    def __init__(
        self,
        model: keras.Model,
        class_names: tuple[str, ...],
        data: DataSpec,
        assets: Path,
        thresholds: Sequence[float] = (),
        confidence: Confidence | None = None,
    ) -> None:
        """Write the assets to the folder `assets`. `thresholds`: one per label with data.labels multi."""
        super().__init__()
        self.confidence = confidence or Confidence()
        if self.confidence.detector is not None:
            detector = self.confidence.detector.with_variables()
            self.confidence = replace(self.confidence, detector=detector)
            self.detector_variables = detector.variables
        self.objective = get_objective(data.labels)
        self.thresholds = tf.constant(thresholds, tf.float32)
        self.model = build_feature_model(model)
        self.data = data
        self._shared = _Shared(self._trace_decoding(), self._trace_model())
        self.labels = tf.constant(class_names)
        paths = _write_assets(assets, class_names, data, thresholds, self.confidence)
        self.assets = [tf.saved_model.Asset(str(path)) for path in paths]

    def classify_images(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify encoded images, string [batch]: JPEG, PNG, GIF, BMP or WebP of any size.

        Returns the outputs of `classify_pixels` and `error`, string [batch], which is empty for a good image.
        Without a readable image, labels are empty, probabilities are 0 and `accepted` is false. Formats that
        are converted for training and by `trainer predict` are errors here, see `decode_image`. An
        orientation is ignored only if a JPEG, PNG or WebP has it just in XMP or in text chunks.
        """
        pixels, errors = self._shared.decode(image_bytes)
        is_good = tf.equal(errors, "")
        outputs = {
            name: tf.where(tf.reshape(is_good, [-1] + [1] * (len(values.shape) - 1)), values, _empty(values))
            for name, values in self.classify_pixels(tf.cast(pixels, tf.float32)).items()
        }
        return {**outputs, "error": errors}

    def _trace_decoding(self) -> tf.types.experimental.ConcreteFunction:
        def decode(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Decoders are CPU kernels; pinning avoids copies to an accelerator and back.
            with tf.device("/CPU:0"):
                return decode_batch(image_bytes, self.data.pixel_format, self.data.max_image_pixels)

        encoded = tf.TensorSpec([None], tf.string)
        return tf.function(decode, input_signature=[encoded], autograph=False).get_concrete_function()

    def _trace_model(self) -> tf.types.experimental.ConcreteFunction:
        def infer(pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            features, logits = self.model(pixels, training=False)
            return features, logits

        pixels = tf.TensorSpec([None, *self.data.pixel_format.shape], tf.float32)
        return tf.function(infer, input_signature=[pixels], autograph=False).get_concrete_function()

    def classify_pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify pixels, float32 [batch, height, width, channels] in 0..255: grey, RGB or RGBA.

        Returns `label`, string [batch]; `probability` of that label, float32 [batch]; and `probabilities`,
        float32 [batch, classes], in the order of labels.txt. With data.labels multi, `labels`, string [batch,
        classes], replaces the first two: the name of each label whose probability reaches its threshold, ""
        for the others. With a detector, also `known`, float32 [batch], the p-value of the image among those
        that are like the training images, and `accepted`, bool [batch], whether it reaches the level.
        """
        features, logits = self._shared.infer(pixels)
        return {**self._label(logits), **self._recognize(features)}

    def _label(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = probabilities_of(self.objective, logits, self.confidence.temperature)
        if self.data.labels == "multi":
            labels = tf.where(probabilities >= self.thresholds, self.labels, "")
            return {"labels": labels, "probabilities": probabilities}
        return {
            "label": tf.gather(self.labels, tf.argmax(probabilities, axis=1)),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    def _recognize(self, features: tf.Tensor) -> dict[str, tf.Tensor]:
        detector = self.confidence.detector
        if detector is None:
            return {}
        known = detector.p_values(detector.scores(features))
        return {"known": known, "accepted": detector.is_accepted(known)}

    def find_nearest(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return the training images that are nearest to encoded images, string [batch].

        Returns `names` and `distances`, [batch, n], the nearest first, and `error` as `classify_images`. The
        names are empty for an image with an error. See `NoveltyDetector.nearest`.
        """
        if self.confidence.detector is None:
            raise ValueError("A model without a detector has no training images.")
        pixels, errors = self._shared.decode(image_bytes)
        features, _ = self._shared.infer(tf.cast(pixels, tf.float32))
        names, distances = self.confidence.detector.nearest(features, NEAREST_COUNT)
        names = tf.where(tf.equal(errors, "")[:, None], names, "")
        return {"names": names, "distances": distances, "error": errors}

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Return the signatures as traced functions."""
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        pixels = tf.TensorSpec([None, *self.data.pixel_format.shape], tf.float32, name="pixels")
        # Not attributes, which would be traced and saved once more. AutoGraph, which this code does not need,
        # took half of the export's time.
        from_bytes = tf.function(self.classify_images, input_signature=[encoded], autograph=False)
        from_pixels = tf.function(self.classify_pixels, input_signature=[pixels], autograph=False)
        signatures = {"serving_default": from_bytes, "pixels": from_pixels}
        if self.confidence.detector is not None:
            signatures["nearest"] = tf.function(self.find_nearest, input_signature=[encoded], autograph=False)
        return {name: function.get_concrete_function() for name, function in signatures.items()}


def probabilities_of(objective: Objective, logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """Return the probabilities, [batch, classes], of logits that are divided by `temperature`."""
    return objective.probabilities(logits if temperature == 1.0 else logits / temperature)


def _empty(values: tf.Tensor) -> tf.Tensor:
    return tf.constant("") if values.dtype == tf.string else tf.zeros([], values.dtype)


def export_model(
    path: Path,
    model: keras.Model,
    class_names: tuple[str, ...],
    data: DataSpec,
    thresholds: Sequence[float] = (),
    confidence: Confidence | None = None,
) -> None:
    """Write the SavedModel of `model` to the folder `path`, which must not exist.

    thresholds: probability from which each label is predicted, with data.labels multi. confidence: by default
    a temperature of 1 and no detector.

    Raises TemporaryError if the disk fails.
    """
    with temporary_folder() as assets:
        served = ServedModel(model, class_names, data, assets, thresholds, confidence)
        try:
            tf.saved_model.save(served, str(path), signatures=served.signatures())
        except tf.errors.OpError as error:
            raise TemporaryError(
                "The model could not be written; the disk may be full.",
                "Free some space and run the same command again.",
                received=f"{path} ({error.message[:200]})",
            ) from None


def _write_assets(
    folder: Path,
    class_names: tuple[str, ...],
    data: DataSpec,
    thresholds: Sequence[float],
    confidence: Confidence,
) -> tuple[Path, Path]:
    labels, description = folder / "labels.txt", folder / "model.json"
    labels.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    content: dict[str, Any] = {
        "format": "trainer image classifier",
        "format_version": FORMAT_VERSION,
        "trainer_version": __version__,
        "tensorflow_version": tf.__version__,
        "class_names": list(class_names),
        **data.describe_pixels(),
        "max_image_pixels": data.max_image_pixels,
        "temperature": confidence.temperature,
    }
    if data.labels == "multi":
        content |= {"labels": data.labels, "thresholds": dict(zip(class_names, thresholds, strict=True))}
    if (detector := confidence.detector) is not None:
        content["rejection"] = {
            "method": detector.method,
            "level": detector.level,
            "calibration_images": len(detector.calibration),
            "training_images": len(detector.names),
            "selection_auroc": confidence.selection,
        }
    description.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return labels, description
