"""The whole training state, saved and restored exactly.

In: named variables and a record of where training stands. Out: one file that holds both,
visible only when it is complete. Plain arrays, no pickles and no code: `numpy.load` reads
them anywhere.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.damage import DAMAGE
from trainer.exits import TemporaryError, UsageError
from trainer.storage.local import write_bytes

Arrays = dict[str, np.ndarray[Any, Any]]
"""By the variables' names."""

_RECORD = "record.json"
_PART = "-part"
_DAMAGED = "damaged-"
_KEPT = 2
# It isn't there, is a folder, or has an offset that leads nowhere; all else is the disk's.
_OF_THE_FILE = (None, errno.ENOENT, errno.EISDIR, errno.EINVAL)


class DamagedError(Exception):
    """A checkpoint that can't be read."""


def take_snapshot(variables: Mapping[str, tf.Variable]) -> Arrays:
    """Return copies of the values, which further training leaves alone."""
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}


def save_checkpoint(
    folder: Path, step: int, arrays: Arrays, record: Mapping[str, Any], whole_epoch: bool = True
) -> Path:
    """Write `arrays` and `record` (JSON values) to folder/step-00001234.npz; return the path.

    One that is not of a whole epoch is called step-00001234-part.npz. The newest two are
    kept, and the newest two of whole epochs. Raises what `write_bytes` raises.
    """
    path = folder / f"step-{step:08d}{'' if whole_epoch else _PART}.npz"
    write_arrays(path, arrays, record)
    kept = {*list_checkpoints(folder)[-_KEPT:], *list_checkpoints(folder, whole_epochs=True)[-_KEPT:]}
    for old in list_checkpoints(folder):
        if old not in kept:
            old.unlink(missing_ok=True)
    return path


def save_best(folder: Path, epoch: int, arrays: Arrays) -> None:
    """Write the weights of the best epoch so far; those of the two bests before it stay too.

    A restart may have to go back to a checkpoint that is older than the newest two. Bests of later
    epochs are of a training that was left behind, and go.
    """
    path = _best(folder, epoch)
    write_arrays(path, arrays, {"epoch": epoch})
    found = sorted(folder.glob("best-*.npz"))
    kept = [each for each in found if each <= path][-_KEPT - 1 :]
    for other in found:
        if other not in kept:
            other.unlink(missing_ok=True)


def restore_best(
    folder: Path,
    epoch: int,
    variables: Mapping[str, tf.Variable],
    on_damage: Callable[[str], None] = lambda message: None,
) -> bool:
    """Put what `save_best` wrote for `epoch` into `variables`; return whether it could be read.

    A damaged file is set aside under another name; `on_damage` is called with what is wrong. Raises
    TemporaryError for a disk that fails, UsageError for the weights of another model.
    """
    path = _best(folder, epoch)
    try:
        restore_checkpoint(path, variables)
    except DamagedError as error:
        on_damage(f"{path.name} is {f'damaged ({str(error)[:100]})' if path.exists() else 'missing'}")
        _set_aside(path)
        return False
    return True


def list_bests(folder: Path) -> list[int]:
    """Return the epochs whose weights `save_best` wrote to `folder` and that can be read, oldest first."""
    paths = [path for path in sorted(folder.glob("best-*.npz")) if _is_readable(path)]
    return [int(path.stem.partition("-")[2]) for path in paths]


def write_arrays(path: Path, arrays: Arrays, record: Mapping[str, Any]) -> None:
    """Write `arrays` and `record` to `path`, which appears only when it is complete and was read back."""
    buffer = io.BytesIO()
    packed: dict[str, Any] = {**arrays, _RECORD: np.frombuffer(json.dumps(record).encode(), np.uint8)}
    np.savez(buffer, **packed)
    write_bytes(path, buffer.getvalue(), read_back=True)


def _best(folder: Path, epoch: int) -> Path:
    return folder / f"best-{epoch:06d}.npz"


def list_checkpoints(folder: Path, whole_epochs: bool = False) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first; with `whole_epochs` only those of epochs' ends."""
    paths = sorted(folder.glob("step-*.npz"))
    return [path for path in paths if not (whole_epochs and path.stem.endswith(_PART))]


def has_readable(folder: Path) -> bool:
    """Return whether a checkpoint in `folder` can be read. Raises TemporaryError for a disk that fails."""
    return any(map(_is_readable, reversed(list_checkpoints(folder))))


def restore_newest(
    folder: Path,
    variables: Mapping[str, tf.Variable],
    whole_epochs: bool = False,
    on_damage: Callable[[str], None] = lambda message: None,
    is_wanted: Callable[[Mapping[str, Any]], bool] = lambda record: True,
) -> dict[str, Any] | None:
    """Put the newest readable checkpoint's values into `variables`; return its record, or None.

    Only of those whose record `is_wanted`. A damaged file is set aside under another name, so that it never
    counts as the newest again, and passed over for the one before it; `on_damage` hears of it. Raises
    TemporaryError for a disk that fails, UsageError for a checkpoint of another model.
    """
    paths = list_checkpoints(folder, whole_epochs)
    for path in reversed(paths):
        try:
            arrays, record = _read(path)
        except DamagedError as error:
            _set_aside(path)
            none = "there is none before it" if whole_epochs else "there is none before it, so it begins anew"
            then = none if path == paths[0] else "going back to the checkpoint before it"
            on_damage(f"{path.name} is damaged ({str(error)[:100]}): {then}")
            continue
        if is_wanted(record):
            _assign(path, arrays, variables)
            return record
    return None


def forget_newer(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps than `step`, which a training that went back makes again."""
    for path in list_checkpoints(folder):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()


def restore_checkpoint(path: Path, variables: Mapping[str, tf.Variable]) -> dict[str, Any]:
    """Put the values of the checkpoint at `path` into `variables`; return its record.

    All values are read and compared in shape before the first variable changes. Raises
    UsageError for a checkpoint of another model, TemporaryError for a disk that fails, and DamagedError.
    """
    arrays, record = _read(path)
    _assign(path, arrays, variables)
    return record


def _assign(path: Path, arrays: Arrays, variables: Mapping[str, tf.Variable]) -> None:
    differing = sorted(
        name
        for name in {*arrays, *variables}
        if name not in arrays or name not in variables or arrays[name].shape != tuple(variables[name].shape)
    )
    if differing:
        raise UsageError(
            f"The checkpoint {path} is of another model; give this run another --run-name. "
            f"Received: {len(differing)} variables that differ, such as {differing[0]}"
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _set_aside(path: Path) -> None:
    """Give a damaged file a name under which it counts for nothing."""
    if path.exists():
        path.replace(path.with_name(_DAMAGED + path.name))


def _is_readable(path: Path) -> bool:
    try:
        _read(path)
    except DamagedError:
        return False
    return True


def _read(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    try:
        # Opened here: `np.load` leaves a damaged file open.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(arrays.pop(_RECORD).tobytes())
    except MemoryError:
        raise  # says nothing of the file
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            raise DamagedError(str(error)) from error
        raise TemporaryError(f"{path} could not be read; try again. Received: {error.strerror}") from error
    except (*DAMAGE, KeyError, TypeError, AttributeError) as error:
        # No record; or no archive at all: an AttributeError on Python 3.10, and a pickle as NumPy sees it.
        said = "it is not an archive of arrays" if "pickle" in str(error) else str(error)
        raise DamagedError(said or type(error).__name__) from error
