"""Reader for Keras weights files (.weights.h5, .h5 or .keras), as plain arrays by layer.

It reads only arrays and their names. It ignores the configuration, which may refer to code, and rejects
links, which may lead to other files.
"""

from __future__ import annotations

import lzma
import math
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from trainer.errors import DataError
from trainer.storage.local import FULL
from trainer.storage.temporary import temporary_folder

_HDF5, _ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
_MEMBER = "model.weights.h5"
_MAX_BYTES = 4 << 30
_MAX_DEPTH = 8
_READ_ERRORS = (
    OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError, OverflowError,
    EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class StoredLayer:
    """The arrays of one layer, in the order of its variables, read on access."""

    name: str
    """Name of the layer in the saved model."""
    key: str
    """Kind and number, such as `conv2d_3` or `sequential/conv2d`; empty in the Keras 2 format."""
    arrays: tuple[Any, ...]
    """h5py datasets."""


def is_keras_file(path: Path) -> bool:
    """Return whether the file at `path` starts like a Keras file. Raises DataError if it is unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5)).startswith((_HDF5, _ZIP))
    except OSError as error:
        raise DataError(
            f"The weights file cannot be read: {error.strerror}.",
            "Check its path and its permissions.",
            received=path,
        ) from None


@contextmanager
def open_layers(path: Path) -> Iterator[list[StoredLayer]]:
    """Yield the layers with weights in the file at `path`. Raises DataError for a file without any."""
    with temporary_folder() as folder, _translate_errors(path), _open(path, folder) as file:
        yield _read_layers(file)


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # disk errors of the folder for temporary files
        raise DataError(
            "The weights file cannot be read: it is damaged, or not a .weights.h5, .h5 or .keras file.",
            "Download it again.",
            received=f"{path} ({(str(error) or type(error).__name__).splitlines()[0][:120]})",
        ) from None


def _open(path: Path, folder: Path) -> Any:
    return h5py.File(_unpack(path, folder) if zipfile.is_zipfile(path) else path, "r")


def _unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as source:
        if archive.getinfo(_MEMBER).file_size > _MAX_BYTES:
            raise ValueError(f"{_MEMBER} is larger than {_MAX_BYTES >> 30} GiB")
        with (folder / _MEMBER).open("wb") as target:
            try:
                shutil.copyfileobj(source, target)
            except MemoryError:  # the required size comes from the LZMA header
                raise ValueError(f"{_MEMBER} requires too much memory for decompression") from None
    return folder / _MEMBER


def _read_layers(file: Any) -> list[StoredLayer]:
    group = (
        _open_member(file, "model_weights")
        if "layer_names" not in file.attrs and "model_weights" in file
        else file
    )
    layers = (
        _read_keras2(group)
        if "layer_names" in group.attrs or "layer_names0" in group.attrs
        else _read_keras3(group)
    )
    if not layers:
        raise ValueError("it contains no weights")
    return layers


def _read_keras2(group: Any) -> list[StoredLayer]:
    """Return the layers of the Keras 2 format, in the order of the model."""
    layers = []
    for name in _read_texts(group, "layer_names"):
        layer = _open_member(group, name)
        arrays = tuple(_open_member(layer, weight) for weight in _read_texts(layer, "weight_names"))
        if arrays:
            layers.append(StoredLayer(name, "", tuple(map(_check_dataset, arrays))))
    return layers


def _read_keras3(group: Any) -> list[StoredLayer]:
    """Return the layers of the Keras 3 format, which numbers the layers of each kind separately."""
    return list(_nested(_open_member(group, "layers") if "layers" in group else group, "", _MAX_DEPTH))


def _nested(group: Any, prefix: str, depth: int) -> Iterator[StoredLayer]:
    """Yield the layers in `group` and their nested layers."""
    if not depth:
        raise ValueError("layers are nested too deeply")
    for key in group:
        layer = _open_member(group, key)
        if not isinstance(layer, h5py.Group):
            continue
        if "vars" in layer and len(values := _open_member(layer, "vars")):
            name = str(values.attrs.get("name", key))
            arrays = (_check_dataset(_open_member(values, index)) for index in sorted(values, key=_number))
            yield StoredLayer(name, prefix + key, tuple(arrays))
        if "layers" in layer:
            yield from _nested(_open_member(layer, "layers"), f"{prefix}{key}/", depth - 1)


def _number(key: str) -> int:
    match = re.search(r"(\d+)$", key)
    return int(match[1]) if match else 0


def _open_member(group: Any, name: str) -> Any:
    """Return the object `name` in `group`, by hard links only, because others may lead to other files."""
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{part} is missing or a link")
        group = group[part]
    return group


def _check_dataset(dataset: Any) -> Any:
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} is not stored in the file itself")
    if dataset.dtype.kind not in "fiu" or math.prod(dataset.shape) * dataset.dtype.itemsize > _MAX_BYTES:
        raise ValueError(f"{dataset.name} is not a numeric array, or too large")
    return dataset


def _read_texts(group: Any, name: str) -> list[str]:
    """Return the strings of an attribute, which is split into numbered parts if it is long."""
    parts = [name] if name in group.attrs else [f"{name}{index}" for index in range(len(group.attrs))]
    values = [value for part in parts if part in group.attrs for value in group.attrs[part]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
