"""Safe reader for PyTorch tensor files, without PyTorch.

It reads .pth files in the format of PyTorch before 1.6 into plain arrays. Such a file is a pickle, which can
call any function. This reader supports only what builds tensors and rejects everything else.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from trainer.errors import DataError

Arrays = dict[str, np.ndarray[Any, Any]]
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
}  # fmt: skip
_READ_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, struct.error, UnicodeDecodeError, RecursionError, MemoryError,
)  # fmt: skip


class _UnsafeError(Exception):
    """The file refers to a function that builds no tensor."""


class _Storage(NamedTuple):
    """A block of values of one dtype, created only by `persistent_load`.

    It is a tuple, because a pickle can set the attributes of other objects, even of frozen dataclasses.
    """

    key: str
    dtype: str


class _Tensor(NamedTuple):
    """View of a storage with a shape and strides."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In values, like `offset`."""


class _Unpickler(pickle.Unpickler):
    """Unpickler for containers, numbers, text and tensors only."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the substitute for an allowed name. Raises _UnsafeError for all others."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new object for each file, like the class below.
            return lambda *parts: _build_tensor(*parts)
        if (module, name) == ("collections", "OrderedDict"):
            # Attributes that the file sets on the class are discarded with the file.
            return type("OrderedDict", (dict,), {})
        raise _UnsafeError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage. Raises ValueError for other objects, or a dtype that is not in `_DTYPES`."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise ValueError(f"{kind} instead of a storage")
        return _Storage(str(key), dtype)


def _build_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    """Return a tensor. Raises ValueError if the arguments are not a storage and integers."""
    if not isinstance(storage, _Storage):
        raise ValueError(f"{type(storage).__name__} instead of a storage")
    if not all(isinstance(number, int) for number in (offset, *shape, *stride)):
        raise ValueError("the shape or strides of a tensor are not integers")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


def read_torch_file(path: Path) -> Arrays:
    """Return the tensors in the file at `path`, by name.

    Raises DataError for a file that is unreadable, is damaged, or contains anything but tensors. Nothing in
    the file is executed.
    """
    try:
        with path.open("rb") as file:
            return _read(io.BytesIO(file.read()))
    except OSError as error:
        raise DataError(
            f"The weights file cannot be read: {error.strerror}.",
            "Check its path and its permissions.",
            received=path,
        ) from None
    except _UnsafeError as error:
        raise DataError(
            "The weights file contains code. It was rejected, and the code was not executed.",
            "Get the weights from a source that you trust.",
            received=f"{error} in {path}",
        ) from None
    except _READ_ERRORS as error:
        raise DataError(
            "The file is damaged or not a weights file (.weights.h5, .h5, .keras or .pth).",
            "Download it again.",
            received=f"{path} ({str(error)[:100] or type(error).__name__})",
        ) from None


def _read(file: BinaryIO) -> Arrays:
    if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
        raise ValueError("wrong magic number or protocol")
    _Unpickler(file).load()  # system information of the machine that wrote the file
    tensors = _Unpickler(file).load()
    views = {str(name): tensor for name, tensor in dict.items(tensors) if isinstance(tensor, _Tensor)}
    dtypes = {view.storage.key: view.storage.dtype for view in views.values()}
    storages = {key: _read_storage(file, dtypes[key]) for key in map(str, _Unpickler(file).load())}
    return {name: _build_array(view, storages[view.storage.key]) for name, view in views.items()}


def _read_storage(file: BinaryIO, dtype: str) -> np.ndarray[Any, Any]:
    (count,) = struct.unpack("<q", file.read(8))
    values = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    if len(values) != count:
        raise ValueError("the file is truncated")
    return values


def _build_array(tensor: _Tensor, storage: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if len(tensor.shape) != len(tensor.stride) or min((tensor.offset, *tensor.shape, *tensor.stride)) < 0:
        raise ValueError(f"invalid tensor: shape {tensor.shape}, strides {tensor.stride}")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    # A stride of 0 repeats values, so a few bytes could expand to gigabytes.
    if last >= len(storage) or math.prod(tensor.shape) > len(storage):
        raise ValueError("a tensor exceeds its storage")
    steps = [step * storage.itemsize for step in tensor.stride]
    # No copy, because any number of tensors may share a storage.
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps, writeable=False)
