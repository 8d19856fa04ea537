"""Files of tensors that PyTorch wrote, read without PyTorch and without trusting them.

In: the path of a .pth file in the format of PyTorch before 1.6. Out: plain arrays. The file is a pickle, and
a pickle can call any function; only what builds tensors is known here, and everything else is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from trainer.exits import DataError

Arrays = dict[str, np.ndarray[Any, Any]]
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1",
}  # fmt: skip
_DAMAGE = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, struct.error, UnicodeDecodeError, RecursionError, MemoryError,
)  # fmt: skip


class _RefusedError(Exception):
    """The file names a function that builds no tensor."""


class _Storage(NamedTuple):
    """A block of values of one dtype; only `persistent_load` makes one.

    A tuple, because a pickle can set the attributes of other objects, even of frozen ones.
    """

    key: str
    dtype: str


class _Tensor(NamedTuple):
    """Where in which storage the values of a tensor are."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """In values, as `offset`."""


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, text and tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the one stand-in of a name that is known. Raises _RefusedError for all others."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # One of its own for each file, as below.
            return lambda *parts: _tensor(*parts)
        if (module, name) == ("collections", "OrderedDict"):
            # Whatever the file sets on it is gone with the file.
            return type("OrderedDict", (dict,), {})
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage. Raises ValueError for anything else, or another dtype than those of `_DTYPES`."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise ValueError(f"a {kind} instead of a storage")
        return _Storage(str(key), dtype)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    """Return a tensor. Raises ValueError if the file gives anything but a storage and whole numbers."""
    if not isinstance(storage, _Storage):
        raise ValueError(f"a {type(storage).__name__} instead of a storage")
    if not all(isinstance(each, int) for each in (offset, *shape, *stride)):
        raise ValueError("a tensor whose shape is no whole numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))


def read_torch_file(path: Path) -> Arrays:
    """Return the tensors in the file at `path`, by name.

    Raises DataError for a file that can't be read, is damaged, or holds anything but tensors; nothing in it
    is executed.
    """
    try:
        with path.open("rb") as file:
            return _read(io.BytesIO(file.read()))
    except OSError as error:
        raise DataError(f"The weights can't be read: {error.strerror}. Received: {path}") from None
    except _RefusedError as error:
        raise DataError(
            "The file of weights has code in it. It was refused, and nothing in it was executed; get the "
            f"weights from somewhere else. Received: {error} in {path}"
        ) from None
    except _DAMAGE as error:
        raise DataError(
            "This is no file of weights (.weights.h5, .h5, .keras), or it is damaged; get it again. "
            f"Received: {path} ({str(error)[:100] or type(error).__name__})"
        ) from None


def _read(file: BinaryIO) -> Arrays:
    if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
        raise ValueError("it does not begin as such a file")
    _Unpickler(file).load()  # of the machine that wrote it
    tensors = _Unpickler(file).load()
    found = {str(name): each for name, each in dict.items(tensors) if isinstance(each, _Tensor)}
    dtypes = {each.storage.key: each.storage.dtype for each in found.values()}
    storages = {key: _read_storage(file, dtypes[key]) for key in map(str, _Unpickler(file).load())}
    return {name: _values(each, storages[each.storage.key]) for name, each in found.items()}


def _read_storage(file: BinaryIO, dtype: str) -> np.ndarray[Any, Any]:
    (count,) = struct.unpack("<q", file.read(8))
    values = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    if len(values) != count:
        raise ValueError("it ends too early")
    return values


def _values(tensor: _Tensor, storage: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if len(tensor.shape) != len(tensor.stride) or min((tensor.offset, *tensor.shape, *tensor.stride)) < 0:
        raise ValueError(f"a tensor of {tensor.shape} with the strides {tensor.stride}")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
    # A stride of 0 repeats values: a few bytes would become gigabytes.
    if last >= len(storage) or math.prod(tensor.shape) > len(storage):
        raise ValueError("a tensor of more values than there are")
    steps = [step * storage.itemsize for step in tensor.stride]
    # No copy: any number of tensors may share a storage.
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps, writeable=False)
