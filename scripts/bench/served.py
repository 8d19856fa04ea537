"""A served answer with rejection against one without it and against a bare one; used by bench.py."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.data.decode import decode_and_resize
from trainer.evaluate.unknown import MOST_POINTS, fit_detector
from trainer.export import Confidence, export_model
from trainer.model import build_inference_model
from trainer.model.features import build_feature_model
from trainer.spec import PixelFormat, load_spec

_SETTINGS = [
    "data={image_size: 224, resize: crop, crop_fraction: 0.875, interpolation: bicubic}",
    "model={family: pretrained, backbone: efficientnet-lite0}",
]
"""As in the recipe auto. The weights are not loaded, because they do not affect the speed."""
_REQUESTS = 40


def prepare(folder: Path, batch: int) -> tuple[Callable[[], float], ...]:
    """Return functions that measure milliseconds per image with rejection, without it, and of a bare model.

    The bare model decodes, resizes and classifies, and fails as a whole if an image cannot be decoded.
    """
    spec = load_spec(settings=_SETTINGS)
    model = build_inference_model(spec.model, 2, spec.data.image_size)
    width = build_feature_model(model).outputs[0].shape[-1]
    features = np.random.default_rng(0).normal(size=(MOST_POINTS, width)).astype(np.float32)
    names = [f"train/cats/cat.{row}.jpg" for row in range(MOST_POINTS)]
    scores = np.random.default_rng(0).uniform(0, 2, MOST_POINTS)
    detector = fit_detector("neighbour", features, np.arange(MOST_POINTS) % 2, names, 0.05, scores)
    files = sorted((folder / "validation").rglob("*.jpg"))[: _REQUESTS * batch]
    images = [file.read_bytes() for file in files]

    def measured(signature: Callable[..., object]) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            for start in range(0, len(images), batch):
                signature(image_bytes=tf.constant(images[start : start + batch]))
            return 1000 * (time.perf_counter() - started) / len(images)

        measure()  # the first call is compiled
        return measure

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary)
        export_model(path / "with", model, ("cats", "dogs"), spec.data, (), Confidence(1.5, detector))
        export_model(path / "without", model, ("cats", "dogs"), spec.data, (), Confidence(1.5))
        _export_bare(path / "bare", model, spec.data.pixel_format)
        loaded = [tf.saved_model.load(str(path / name)) for name in ("with", "without", "bare")]
    return tuple(measured(_Signature(model)) for model in loaded)


class _Signature:
    """The signature serving_default of a loaded model, which must be kept alive."""

    def __init__(self, model: tf.Module) -> None:
        self.model, self.function = model, model.signatures["serving_default"]

    def __call__(self, image_bytes: tf.Tensor) -> object:
        return self.function(image_bytes=image_bytes)["probabilities"].numpy()


def _export_bare(path: Path, model: tf.Module, form: PixelFormat) -> None:
    module = tf.Module()
    module.model, labels = model, tf.constant(["cats", "dogs"])

    def classify(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = tf.TensorSpec(form.shape, tf.uint8)
        pixels = tf.map_fn(lambda data: decode_and_resize(data, form), image_bytes, fn_output_signature=spec)
        probabilities = tf.nn.softmax(model(tf.cast(pixels, tf.float32), training=False))
        best = tf.argmax(probabilities, axis=1)
        return {"label": tf.gather(labels, best), "probabilities": probabilities}

    encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
    signature = tf.function(classify, input_signature=[encoded], autograph=False).get_concrete_function()
    tf.saved_model.save(module, str(path), signatures={"serving_default": signature})
