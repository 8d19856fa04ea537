"""Loader of exported models, which classify encoded images.

A folder that was not exported by this package, or in a format that it no longer reads, is rejected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.errors import DataError, UsageError
from trainer.export.program import require_computing
from trainer.export.served import FORMAT_VERSION, MULTI_LABEL_VERSION
from trainer.spec import PIXEL_SETTINGS, DataSpec

_REMEDY = "Pass the folder of a finished run, or its model/ folder."


@dataclass(frozen=True)
class LoadedModel:
    """A SavedModel and the content of its assets."""

    path: Path
    class_names: tuple[str, ...]
    data: DataSpec
    """Image settings of the model; no other field of `DataSpec` is set."""
    signatures: Any
    thresholds: tuple[float, ...] = ()
    """Probability from which each label is predicted; only with data.labels multi."""

    def classify(self, images: Sequence[bytes]) -> np.ndarray[Any, Any]:
        """Return probabilities, float32 [images, classes], of encoded images.

        Raises tf.errors.InvalidArgumentError if one of them can't be decoded.
        """
        outputs = self.signatures["serving_default"](image_bytes=tf.constant(list(images), tf.string))
        return np.asarray(outputs["probabilities"])

    def classify_pixels(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return probabilities, float32 [images, classes].

        pixels: [images, height, width, channels] in 0..255.
        """
        outputs = self.signatures["pixels"](pixels=tf.constant(pixels, tf.float32))
        return np.asarray(outputs["probabilities"])


def load_model(path: Path, trust: bool = False) -> LoadedModel:
    """Return the model at `path`, a run folder or a model folder.

    Unless `trust` is set, all its operations must be known to only compute. Raises UsageError if there is no
    model or it is not trusted, DataError if it is damaged.
    """
    folder = _model_folder(path)
    description = read_description(folder)
    if not trust:
        require_computing(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = {name: loaded.signatures[name] for name in ("serving_default", "pixels")}
        data = _described_data(description)
        _require_consistent(signatures, description, data)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise  # out of memory, the model may be fine
    except Exception as error:  # TensorFlow has no exception of its own for a damaged file
        raise DataError(
            "The model is damaged and can't be loaded.",
            "Copy it again, or train again.",
            received=f"{folder} ({(str(error) or type(error).__name__).splitlines()[0][:200]})",
        ) from None
    return LoadedModel(
        folder,
        tuple(description["class_names"]),
        data,
        _Signatures(signatures, loaded),
        _thresholds(description),
    )


def _described_data(description: dict[str, Any]) -> DataSpec:
    """Return the image settings of the model. Raises ValueError or KeyError."""
    required = ("image_size", "resize", "interpolation")
    # Models of earlier versions lack the other settings.
    optional = {*PIXEL_SETTINGS, "max_image_pixels", "labels"} & description.keys()
    return DataSpec(**{key: description[key] for key in (*required, *optional)})


def _require_consistent(signatures: dict[str, Any], description: dict[str, Any], data: DataSpec) -> None:
    """Raise ValueError if the assets do not match the model."""
    shape = signatures["pixels"].structured_input_signature[1]["pixels"].shape
    classes = signatures["pixels"].structured_outputs["probabilities"].shape[-1]
    names = description["class_names"]
    if not isinstance(names, list) or len({name for name in names if isinstance(name, str)}) < len(names):
        raise ValueError("class_names in assets/model.json is not a list of different names")
    if len(_thresholds(description)) != (len(names) if data.labels == "multi" else 0):
        raise ValueError("thresholds in assets/model.json do not match its labels")
    if not shape.is_compatible_with([None, *data.pixel_format.shape]) or classes not in (
        None,
        len(description["class_names"]),
    ):
        raise ValueError("assets/model.json belongs to another model")


def _thresholds(description: dict[str, Any]) -> tuple[float, ...]:
    """Return the threshold of each label, in label order; empty for a model of one label per image."""
    thresholds = description.get("thresholds", {})
    return tuple(float(thresholds[name]) for name in description["class_names"] if thresholds)


class _Signatures(dict[str, Any]):
    """Signatures with a reference to their model, because TensorFlow refers to its variables weakly."""

    def __init__(self, signatures: dict[str, Any], owner: Any) -> None:
        super().__init__(signatures)
        self.owner = owner


def _model_folder(path: Path) -> Path:
    if not path.exists():
        raise UsageError("The model folder does not exist.", _REMEDY, received=path)
    for folder in (path, path / "model"):
        if (folder / "saved_model.pb").exists():
            return folder
    raise UsageError("The folder is neither a run nor a model of trainer.", _REMEDY, received=path)


def read_description(folder: Path) -> dict[str, Any]:
    """Return the description of the SavedModel in `folder`: class_names, image_size, and so on.

    Raises UsageError if it was not exported by this program, or in a format that is no longer read.
    """
    try:
        description: dict[str, Any] = json.loads(
            (folder / "assets" / "model.json").read_text(encoding="utf-8")
        )
        version = description["format_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            "The SavedModel was not exported by trainer, so its inputs are unknown.", _REMEDY, received=folder
        ) from None
    if version not in (FORMAT_VERSION, MULTI_LABEL_VERSION):
        raise UsageError(
            f"This version reads only the model formats {FORMAT_VERSION} and {MULTI_LABEL_VERSION}.",
            f"Use the version that exported it ({description.get('trainer_version')}), or train again.",
            received=f"format {version}",
        )
    return description
