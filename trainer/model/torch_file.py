"""Files of tensors that PyTorch wrote, read without PyTorch and without trusting them.

In: the path of a .pth file in the format of PyTorch before 1.6. Out: plain arrays. The file is a pickle, and
a pickle can call any function; only what builds tensors is known here, and everything else is refused.
"""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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


@dataclass(frozen=True)
class _Tensor:
    """Where in which storage the values of a tensor are."""

    storage: tuple[str, str]
    """Key and dtype."""
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
            return lambda storage, offset, shape, stride, *_: _Tensor(storage, offset, shape, stride)
        if (module, name) == ("collections", "OrderedDict"):
            # One of its own for each file: whatever the file sets on it is gone with it.
            return type("OrderedDict", (dict,), {})
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """Return key and dtype of a storage."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise ValueError(f"a {kind} instead of a storage")
        return str(key), dtype


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
    dtypes = dict(each.storage for each in found.values())
    storages = {key: _read_storage(file, dtypes[key]) for key in map(str, _Unpickler(file).load())}
    return {name: _values(each, storages[each.storage[0]]) for name, each in found.items()}


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
    if last >= len(storage):
        raise ValueError("a tensor of more values than there are")
    steps = [step * storage.itemsize for step in tensor.stride]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps, writeable=False)
    return np.array(view)
