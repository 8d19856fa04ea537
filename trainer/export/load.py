"""An exported model back into this process.

In: the path of a run or of a model. Out: a `LoadedModel` that classifies encoded images. A
folder that this package didn't export, or exported in a form it no longer reads, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.exits import DataError, UsageError
from trainer.export.program import require_computing
from trainer.export.served import FORMAT_VERSION, MULTI_LABEL_VERSION
from trainer.spec import PIXEL_SETTINGS, DataSpec

_NEED = "Give the folder of a finished run or its model/ folder."


@dataclass(frozen=True)
class LoadedModel:
    """A SavedModel and what its assets say of it."""

    path: Path
    class_names: tuple[str, ...]
    data: DataSpec
    """How it was trained to see images; of a `DataSpec` these settings alone."""
    signatures: Any
    thresholds: tuple[float, ...] = ()
    """Of data.labels multi: the probability from which each label is predicted."""

    def classify(self, images: Sequence[bytes]) -> np.ndarray[Any, Any]:
        """Return probabilities, float32 [images, classes], of encoded images.

        Raises tf.errors.InvalidArgumentError if one of them can't be decoded.
        """
        answer = self.signatures["serving_default"](image_bytes=tf.constant(list(images), tf.string))
        return np.asarray(answer["probabilities"])

    def classify_pixels(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return probabilities, float32 [images, classes].

        pixels: [images, height, width, channels] in 0..255.
        """
        answer = self.signatures["pixels"](pixels=tf.constant(pixels, tf.float32))
        return np.asarray(answer["probabilities"])


def load_model(path: Path, trust: bool = False) -> LoadedModel:
    """Return the model at `path`, a run folder or a model folder.

    Without `trust` only one whose operations are known to do nothing but compute. Raises UsageError for what
    is no model or an untrusted one, DataError for a damaged one.
    """
    folder = _model_folder(path)
    about = read_description(folder)
    if not trust:
        require_computing(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = {name: loaded.signatures[name] for name in ("serving_default", "pixels")}
        data = _described_data(about)
        _require_consistent(signatures, about, data)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise  # says nothing of the model
    except Exception as error:  # TensorFlow has no error of its own for a damaged file
        raise DataError(
            f"The model can't be loaded; it is damaged. Train again, or copy it again. Received: {folder} "
            f"({(str(error) or type(error).__name__).splitlines()[0][:200]})"
        ) from None
    kept = _Kept(signatures, loaded)
    return LoadedModel(folder, tuple(about["class_names"]), data, kept, _thresholds(about))


def _described_data(about: dict[str, Any]) -> DataSpec:
    """Return how the model sees images. Raises ValueError, KeyError."""
    first = ("image_size", "resize", "interpolation")
    # Earlier versions did not have the others.
    later = {*PIXEL_SETTINGS, "max_image_pixels", "labels"} & about.keys()
    return DataSpec(**{key: about[key] for key in (*first, *later)})


def _require_consistent(signatures: dict[str, Any], about: dict[str, Any], data: DataSpec) -> None:
    """Raise ValueError if the model's assets speak of another model."""
    shape = signatures["pixels"].structured_input_signature[1]["pixels"].shape
    classes = signatures["pixels"].structured_outputs["probabilities"].shape[-1]
    names = about["class_names"]
    if not isinstance(names, list) or len({name for name in names if isinstance(name, str)}) < len(names):
        raise ValueError("class_names in assets/model.json are not a list of different names")
    if len(_thresholds(about)) != (len(names) if data.labels == "multi" else 0):
        raise ValueError("thresholds in assets/model.json are not those of its labels")
    if not shape.is_compatible_with([None, *data.pixel_format.shape]) or classes not in (
        None,
        len(about["class_names"]),
    ):
        raise ValueError("assets/model.json is of another model")


def _thresholds(about: dict[str, Any]) -> tuple[float, ...]:
    """Return the threshold of each label, in their order; none for a model of one label an image."""
    thresholds = about.get("thresholds", {})
    return tuple(float(thresholds[name]) for name in about["class_names"] if thresholds)


class _Kept(dict[str, Any]):
    """Signatures that keep the model they belong to alive: TensorFlow holds its variables weakly."""

    def __init__(self, signatures: dict[str, Any], owner: Any) -> None:
        super().__init__(signatures)
        self.owner = owner


def _model_folder(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"There is no such folder. {_NEED} Received: {path}")
    for folder in (path, path / "model"):
        if (folder / "saved_model.pb").exists():
            return folder
    raise UsageError(f"This is not a run or a model of this program. {_NEED} Received: {path}")


def read_description(folder: Path) -> dict[str, Any]:
    """Return what the SavedModel in `folder` says of itself: class_names, image_size, and so on.

    Raises UsageError for one that this program didn't export, or in a form that it no longer reads.
    """
    try:
        about: dict[str, Any] = json.loads((folder / "assets" / "model.json").read_text(encoding="utf-8"))
        version = about["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            f"This SavedModel was not exported by this program, so its inputs aren't known. "
            f"{_NEED} Received: {folder}"
        ) from None
    if version not in (FORMAT_VERSION, MULTI_LABEL_VERSION):
        raise UsageError(
            "The model's format is none of those that this version reads "
            f"({FORMAT_VERSION}, {MULTI_LABEL_VERSION}); use the trainer "
            f"that made it ({about.get('trainer_version')}), or train again. Received: format {version}"
        )
    return about
