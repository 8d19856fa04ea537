"""Loading of published weights into the backbone of a pretrained model.

All shapes are compared before the first weight changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.data.weights import WeightsFile, find_weights
from trainer.errors import DataError
from trainer.model.channels import adapt_channels
from trainer.model.h5_file import StoredLayer, is_keras_file, open_layers
from trainer.model.lite0_weights import lite0_arrays
from trainer.model.normalization import FusedBatchNormalization
from trainer.model.torch_file import read_torch_file

__all__ = ["WeightsFile", "find_weights", "load_weights"]

_KINDS = {FusedBatchNormalization: "BatchNormalization"}
"""Keras names of the layers that this package replaces."""
_MOST_NAMED = 5
_COLOURS = 3


@dataclass(frozen=True)
class _Layer:
    """A layer of the backbone that has weights."""

    name: str
    key: str
    """Name by kind and number, as in the Keras 3 format."""
    variables: Sequence[keras.Variable]


def load_weights(backbone: keras.Model, file: WeightsFile) -> None:
    """Load the weights of `file` into `backbone`; other weights in the file are ignored.

    Raises DataError, and changes no weight, if the file is no weights file, is damaged, belongs to another
    network, or has values that are not finite.
    """
    path = file.path
    if not is_keras_file(path):
        arrays = lite0_arrays(read_torch_file(path))
        stored = [StoredLayer(name, "", tuple(each)) for name, each in arrays.items()]
        _assign_fitting(backbone, stored, path)
        return
    with open_layers(path) as stored:
        _assign_fitting(backbone, stored, path)


def _assign_fitting(backbone: keras.Model, stored: Sequence[StoredLayer], path: Path) -> None:
    """Assign by the first pairing in which all layers fit. Raises DataError if there is none."""
    candidates = list(_pairings(backbone, stored))
    for pairs in candidates:
        if not _problems(pairs):
            # Read all values before the first variable changes.
            for variable, value in [*_values(pairs, path)]:
                variable.assign(value)
            return
    problems = min(map(_problems, candidates), key=len)
    shown = "; ".join(problems[:_MOST_NAMED])
    more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
    count = len(candidates[0])
    raise DataError(
        f"The weights are of another network than model.backbone says: {len(problems)} of its {count} layers "
        f"with weights don't fit. Give the weights of this backbone, or the backbone of these weights.",
        received=f"{shown}{more} in {path}",
    )


_Pairs = list[tuple[_Layer, "StoredLayer | None"]]


def _pairings(backbone: keras.Model, stored: Sequence[StoredLayer]) -> Iterator[_Pairs]:
    """Yield candidate pairings of the layers of the backbone with those of the file."""
    is_newer = any(each.key for each in stored)
    layers = list(_layers(backbone.layers, "", is_newer))
    yield _by(layers, {each.name: each for each in stored}, lambda layer: layer.name)
    if is_newer:
        yield _by(layers, {each.key: each for each in stored}, lambda layer: layer.key)
    else:
        # A file that includes the top layer begins with the same layers as one without it.
        padded = [*stored, *[None] * len(layers)]
        yield list(zip(layers, padded, strict=False))


def _by(layers: list[_Layer], stored: Mapping[str, StoredLayer], name: Callable[[_Layer], str]) -> _Pairs:
    return [(layer, stored.get(name(layer))) for layer in layers]


def _layers(layers: Sequence[Any], before: str, is_nested: bool) -> Iterator[_Layer]:
    """Yield the layers that have weights; with `is_nested` those of nested models separately."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = _snake_case(_KINDS.get(type(layer), type(layer).__name__))
        number = counts[kind] = counts.get(kind, -1) + 1
        key = f"{before}{kind}{f'_{number}' if number else ''}"
        if isinstance(layer, keras.Model) and is_nested:
            yield from _layers(layer.layers, f"{key}/", is_nested)
        elif layer.weights:
            yield _Layer(layer.name, key, layer.weights)


def _snake_case(name: str) -> str:
    """Return a class name in the form that Keras uses in files: Conv2D becomes conv2d."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _problems(pairs: _Pairs) -> list[str]:
    """Return the mismatches, one message per layer."""
    found = []
    for layer, stored in pairs:
        wanted = [tuple(each.shape) for each in layer.variables]
        if stored is None:
            found.append(f"{layer.name} is not in the file")
            continue
        shapes = [tuple(each.shape) for each in stored.arrays]
        if len(shapes) != len(wanted) or not all(map(_fits, shapes, wanted)):
            found.append(f"{layer.name} has {_shown(shapes)} instead of {_shown(wanted)}")
    return found


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return shape == wanted or _is_of_colours(shape, wanted)


def _is_of_colours(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether the shape is that of an RGB kernel and the wanted shape has more channels."""
    is_kernel = len(shape) == len(wanted) == 4 and shape[:2] == wanted[:2] and shape[3] == wanted[3]
    return is_kernel and shape[2] == _COLOURS < wanted[2]


def _values(pairs: _Pairs, path: Path) -> Iterator[tuple[keras.Variable, np.ndarray[Any, Any]]]:
    for layer, stored in pairs:
        for variable, array in zip(layer.variables, stored.arrays if stored else (), strict=True):
            with np.errstate(over="ignore"):  # float64 values beyond float32 become infinity
                value = np.asarray(array[()], np.float32)
            if not np.isfinite(value).all():
                raise DataError(
                    "The file of weights has values that are not finite (NaN or infinity in float32), as of "
                    "a training that diverged; give another file.",
                    received=f"layer {layer.name} in {path}",
                )
            if value.shape != tuple(variable.shape):
                value = adapt_channels(value, variable.shape[2])
            yield variable, value
