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
from numpy.typing import NDArray

from trainer.data.weights import WeightsFile, find_weights
from trainer.errors import DataError
from trainer.model.efficientnet_lite import lite0_arrays
from trainer.model.h5_file import StoredLayer, is_keras_file, open_layers
from trainer.model.layers import FusedBatchNormalization
from trainer.model.torch_file import read_torch_file

__all__ = ["WeightsFile", "find_weights", "load_weights"]

_KINDS = {FusedBatchNormalization: "BatchNormalization"}
"""Keras names of the layers that this package replaces."""
_MAX_NAMED = 5
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
        stored = [StoredLayer(name, "", tuple(values)) for name, values in arrays.items()]
        _assign_fitting(backbone, stored, path)
        return
    with open_layers(path) as stored:
        _assign_fitting(backbone, stored, path)


def _assign_fitting(backbone: keras.Model, stored: Sequence[StoredLayer], path: Path) -> None:
    """Assign by the first pairing in which all layers fit. Raises DataError if there is none."""
    candidates = list(_pairings(backbone, stored))
    for pairs in candidates:
        if not _find_problems(pairs):
            # Read all values before the first variable changes.
            for variable, value in [*_read_values(pairs, path)]:
                variable.assign(value)
            return
    problems = min(map(_find_problems, candidates), key=len)
    examples = "; ".join(problems[:_MAX_NAMED])
    more = f"; and {len(problems) - _MAX_NAMED} more" if len(problems) > _MAX_NAMED else ""
    count = len(candidates[0])
    raise DataError(
        f"The weights do not match model.backbone: {len(problems)} of its {count} layers differ.",
        "Use weights of this backbone, or set model.backbone to the network of these weights.",
        received=f"{examples}{more} in {path}",
    )


_Pairs = list[tuple[_Layer, "StoredLayer | None"]]


def _pairings(backbone: keras.Model, stored: Sequence[StoredLayer]) -> Iterator[_Pairs]:
    """Yield candidate pairings of the layers of the backbone with those of the file."""
    is_newer = any(layer.key for layer in stored)
    layers = list(_find_layers(backbone.layers, "", is_newer))
    yield _pair_by(layers, {layer.name: layer for layer in stored}, lambda layer: layer.name)
    if is_newer:
        yield _pair_by(layers, {layer.key: layer for layer in stored}, lambda layer: layer.key)
    else:
        # A file that includes the top layer begins with the same layers as one without it.
        padded = [*stored, *[None] * len(layers)]
        yield list(zip(layers, padded, strict=False))


def _pair_by(
    layers: list[_Layer], stored: Mapping[str, StoredLayer], name: Callable[[_Layer], str]
) -> _Pairs:
    return [(layer, stored.get(name(layer))) for layer in layers]


def _find_layers(layers: Sequence[Any], prefix: str, is_nested: bool) -> Iterator[_Layer]:
    """Yield the layers that have weights; with `is_nested` those of nested models separately."""
    counts: dict[str, int] = {}
    for layer in layers:
        kind = _snake_case(_KINDS.get(type(layer), type(layer).__name__))
        number = counts[kind] = counts.get(kind, -1) + 1
        key = f"{prefix}{kind}{f'_{number}' if number else ''}"
        if isinstance(layer, keras.Model) and is_nested:
            yield from _find_layers(layer.layers, f"{key}/", is_nested)
        elif layer.weights:
            yield _Layer(layer.name, key, layer.weights)


def _snake_case(name: str) -> str:
    """Return a class name in the form that Keras uses in files: Conv2D becomes conv2d."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _find_problems(pairs: _Pairs) -> list[str]:
    """Return the mismatches, one message per layer."""
    problems = []
    for layer, stored in pairs:
        expected = [tuple(variable.shape) for variable in layer.variables]
        if stored is None:
            problems.append(f"{layer.name} is not in the file")
            continue
        shapes = [tuple(array.shape) for array in stored.arrays]
        if len(shapes) != len(expected) or not all(map(_fits, shapes, expected)):
            problems.append(
                f"{layer.name} has {_format_shapes(shapes)} instead of {_format_shapes(expected)}"
            )
    return problems


def _format_shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return shape == expected or _has_more_channels(shape, expected)


def _has_more_channels(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether the shape is that of an RGB kernel and the expected shape has more channels."""
    is_kernel = len(shape) == len(expected) == 4 and shape[:2] == expected[:2] and shape[3] == expected[3]
    return is_kernel and shape[2] == _COLOURS < expected[2]


def _read_values(pairs: _Pairs, path: Path) -> Iterator[tuple[keras.Variable, np.ndarray[Any, Any]]]:
    for layer, stored in pairs:
        for variable, array in zip(layer.variables, stored.arrays if stored else (), strict=True):
            with np.errstate(over="ignore"):  # float64 values beyond float32 become infinity
                value = np.asarray(array[()], np.float32)
            if not np.isfinite(value).all():
                raise DataError(
                    "The weights file contains values that are not finite (NaN or infinity in float32), for "
                    "example because the training diverged.",
                    "Use another weights file.",
                    received=f"layer {layer.name} in {path}",
                )
            if value.shape != tuple(variable.shape):
                value = adapt_channels(value, variable.shape[2])
            yield variable, value


def adapt_channels(kernel: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return a convolution's `kernel`, [height, width, 3, filters], for images of `channels`, 1 or more.

    The rule is that of timm (`adapt_input_conv`). For grey it is the sum over the colours, whose response to
    a grey image equals that of the RGB kernel to the same image in RGB. Otherwise the colours are repeated in
    their order, times 3 / channels, so that the sum over equal channels stays the same. The result is
    [height, width, channels, filters]. Raises ValueError for a kernel that does not have 3 input channels.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 3:
        raise ValueError(
            f"the kernel of an RGB convolution is [height, width, 3, filters], not {kernel.shape}"
        )
    if channels == 3:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.take(kernel, np.arange(channels) % 3, axis=2)
    return (repeated * (3 / channels)).astype(kernel.dtype)
