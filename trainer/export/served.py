"""SavedModel that maps encoded images to labels.

It has two signatures, `serving_default` for encoded images and `pixels` for decoded ones, and two assets:
labels.txt, one class per line, and model.json, which has the versions and image settings of the model and,
with several labels per image, the threshold of each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from trainer import __version__
from trainer.data.decode import decode_and_resize
from trainer.errors import TemporaryError
from trainer.spec import DataSpec
from trainer.storage.temporary import temporary_folder
from trainer.training.objective import get_objective

FORMAT_VERSION, MULTI_LABEL_VERSION, DENOISE_VERSION = 1, 2, 3
"""Versions of model.json. A reader of version 1 alone must not take a model with several labels per image for
one with a single label, and an earlier reader must not decode images without removing their noise."""


class ServedModel(tf.Module):  # type: ignore[misc]
    """The inference model with decoding before it and labels after it."""

    def __init__(
        self,
        model: keras.Model,
        class_names: tuple[str, ...],
        data: DataSpec,
        assets: Path,
        thresholds: Sequence[float] = (),
    ) -> None:
        """Write the assets to the folder `assets`. `thresholds`: one per label with data.labels multi."""
        super().__init__()
        self.objective = get_objective(data.labels)
        self.thresholds = tf.constant(thresholds, tf.float32)
        self.model = model
        self.data = data
        self.labels = tf.constant(class_names)
        paths = _write_assets(assets, class_names, data, thresholds)
        self.assets = [tf.saved_model.Asset(str(path)) for path in paths]

    def classify_images(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify encoded images, string [batch]: JPEG, PNG, GIF, BMP or WebP of any size.

        Formats that are converted for training and by `trainer predict` are errors here, see `decode_image`.
        An orientation is ignored only if a JPEG, PNG or WebP has it just in XMP or in text chunks.
        """
        form = self.data.pixel_format
        # Decoders are CPU kernels; pinning avoids copies to an accelerator and back.
        with tf.device("/CPU:0"):
            pixels = tf.map_fn(
                lambda encoded: decode_and_resize(encoded, form),
                image_bytes,
                fn_output_signature=tf.TensorSpec(form.shape, tf.uint8),
            )
        return self.classify_pixels(tf.cast(pixels, tf.float32))

    def classify_pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify pixels, float32 [batch, height, width, channels] in 0..255: grey, RGB or RGBA.

        Returns `label`, string [batch]; `probability` of that label, float32 [batch]; and `probabilities`,
        float32 [batch, classes], in the order of labels.txt. With data.labels multi, `labels`, string [batch,
        classes], replaces the first two: the name of each label whose probability reaches its threshold, ""
        for the others.
        """
        probabilities = self.objective.probabilities(self.model(pixels, training=False))
        if self.data.labels == "multi":
            labels = tf.where(probabilities >= self.thresholds, self.labels, "")
            return {"labels": labels, "probabilities": probabilities}
        return {
            "label": tf.gather(self.labels, tf.argmax(probabilities, axis=1)),
            "probability": tf.reduce_max(probabilities, axis=1),
            "probabilities": probabilities,
        }

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Return the two signatures as traced functions."""
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        pixels = tf.TensorSpec([None, *self.data.pixel_format.shape], tf.float32, name="pixels")
        # Not attributes, which would be traced and saved once more. AutoGraph, which this code does not need,
        # took half of the export's time.
        from_bytes = tf.function(self.classify_images, input_signature=[encoded], autograph=False)
        from_pixels = tf.function(self.classify_pixels, input_signature=[pixels], autograph=False)
        return {
            "serving_default": from_bytes.get_concrete_function(),
            "pixels": from_pixels.get_concrete_function(),
        }


def export_model(
    path: Path,
    model: keras.Model,
    class_names: tuple[str, ...],
    data: DataSpec,
    thresholds: Sequence[float] = (),
) -> None:
    """Write the SavedModel of `model` to the folder `path`, which must not exist.

    thresholds: probability from which each label is predicted, with data.labels multi.

    Raises TemporaryError if the disk fails.
    """
    with temporary_folder() as assets:
        served = ServedModel(model, class_names, data, assets, thresholds)
        try:
            tf.saved_model.save(served, str(path), signatures=served.signatures())
        except tf.errors.OpError as error:
            raise TemporaryError(
                "The model could not be written; the disk may be full.",
                "Free some space and run the same command again.",
                received=f"{path} ({error.message[:200]})",
            ) from None


def _write_assets(
    folder: Path, class_names: tuple[str, ...], data: DataSpec, thresholds: Sequence[float]
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
    }
    if data.labels == "multi":
        content |= {
            "format_version": MULTI_LABEL_VERSION,
            "labels": data.labels,
            "thresholds": dict(zip(class_names, thresholds, strict=True)),
        }
    if data.denoise is not None:
        content["format_version"] = DENOISE_VERSION
    description.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return labels, description
