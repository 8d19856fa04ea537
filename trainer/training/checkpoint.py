"""Checkpoint files for the exact train state.

A checkpoint is one .npz file with named variables and a JSON record of the training progress. It is visible
only when it is complete. It contains plain arrays, no pickles and no code, and can be read with `numpy.load`.
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

from trainer.data.archive_errors import DAMAGE
from trainer.errors import TemporaryError, UsageError
from trainer.storage.local import write_bytes

Arrays = dict[str, np.ndarray[Any, Any]]
"""Arrays by variable name."""

_RECORD = "record.json"
_PARTIAL = "-part"
_DAMAGED_PREFIX = "damaged-"
_KEEP_COUNT = 2
# Missing file, folder, or invalid offset: errors of the file itself; all others are errors of the disk.
_FILE_ERRNOS = (None, errno.ENOENT, errno.EISDIR, errno.EINVAL)


class DamagedError(Exception):
    """A checkpoint that cannot be read."""


def take_snapshot(variables: Mapping[str, tf.Variable]) -> Arrays:
    """Return copies of the values, which further training does not change."""
    return {name: np.array(variable.numpy()) for name, variable in variables.items()}


def save_checkpoint(
    folder: Path, step: int, arrays: Arrays, record: Mapping[str, Any], whole_epoch: bool = True
) -> Path:
    """Write `arrays` and `record` (JSON values) to folder/step-00001234.npz; return the path.

    A checkpoint within an epoch is called step-00001234-part.npz. Keeps the newest two checkpoints and the
    newest two of whole epochs, and deletes the others. Raises what `write_bytes` raises.
    """
    path = folder / f"step-{step:08d}{'' if whole_epoch else _PARTIAL}.npz"
    write_arrays(path, arrays, record)
    newest = {
        *list_checkpoints(folder)[-_KEEP_COUNT:],
        *list_checkpoints(folder, whole_epochs=True)[-_KEEP_COUNT:],
    }
    for old in list_checkpoints(folder):
        if old not in newest:
            old.unlink(missing_ok=True)
    return path


def save_best(folder: Path, epoch: int, arrays: Arrays) -> None:
    """Write the weights of the best epoch so far; keep those of the two best epochs before it.

    A restart may have to restore a checkpoint that is older than the newest two. Weights of later epochs
    belong to abandoned progress and are deleted.
    """
    path = _path_of_best(folder, epoch)
    write_arrays(path, arrays, {"epoch": epoch})
    paths = sorted(folder.glob("best-*.npz"))
    current = [other for other in paths if other <= path][-_KEEP_COUNT - 1 :]
    for other in paths:
        if other not in current:
            other.unlink(missing_ok=True)


def restore_best(
    folder: Path,
    epoch: int,
    variables: Mapping[str, tf.Variable],
    on_damage: Callable[[str], None] = lambda message: None,
) -> bool:
    """Restore the weights that `save_best` wrote for `epoch`; return whether they are readable.

    A damaged file is renamed; `on_damage` is called with a description. Raises TemporaryError for a disk
    error, UsageError for the weights of another model.
    """
    path = _path_of_best(folder, epoch)
    try:
        restore_checkpoint(path, variables)
    except DamagedError as error:
        on_damage(f"{path.name} is {f'damaged ({str(error)[:100]})' if path.exists() else 'missing'}")
        _rename_damaged(path)
        return False
    return True


def list_bests(folder: Path) -> list[int]:
    """Return the epochs whose weights `save_best` wrote to `folder` and that are readable, oldest first."""
    paths = [path for path in sorted(folder.glob("best-*.npz")) if _is_readable(path)]
    return [int(path.stem.partition("-")[2]) for path in paths]


def write_arrays(path: Path, arrays: Arrays, record: Mapping[str, Any]) -> None:
    """Write `arrays` and `record` to `path`, which is visible only when it is complete and verified."""
    buffer = io.BytesIO()
    packed: dict[str, Any] = {**arrays, _RECORD: np.frombuffer(json.dumps(record).encode(), np.uint8)}
    np.savez(buffer, **packed)
    write_bytes(path, buffer.getvalue(), read_back=True)


def _path_of_best(folder: Path, epoch: int) -> Path:
    return folder / f"best-{epoch:06d}.npz"


def list_checkpoints(folder: Path, whole_epochs: bool = False) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first; with `whole_epochs` only those of whole epochs."""
    paths = sorted(folder.glob("step-*.npz"))
    return [path for path in paths if not (whole_epochs and path.stem.endswith(_PARTIAL))]


def has_readable(folder: Path) -> bool:
    """Return whether any checkpoint in `folder` is readable. Raises TemporaryError for a disk error."""
    return any(map(_is_readable, reversed(list_checkpoints(folder))))


def restore_newest(
    folder: Path,
    variables: Mapping[str, tf.Variable],
    whole_epochs: bool = False,
    on_damage: Callable[[str], None] = lambda message: None,
    is_wanted: Callable[[Mapping[str, Any]], bool] = lambda record: True,
) -> dict[str, Any] | None:
    """Restore the newest readable checkpoint into `variables`; return its record, or None.

    is_wanted: filter by the record of a checkpoint. A damaged file is renamed, so that it is never the newest
    again, and the checkpoint before it is tried; `on_damage` is called with a description. Raises
    TemporaryError for a disk error, UsageError for a checkpoint of another model.
    """
    paths = list_checkpoints(folder, whole_epochs)
    for path in reversed(paths):
        try:
            arrays, record = _read(path)
        except DamagedError as error:
            _rename_damaged(path)
            begins = "" if whole_epochs else ", so training starts from the beginning"
            is_last = path == paths[0]
            fallback = f"no older checkpoint is left{begins}" if is_last else "trying the one before it"
            on_damage(f"{path.name} is damaged ({str(error)[:100]}): {fallback}")
            continue
        if is_wanted(record):
            _assign(path, arrays, variables)
            return record
    return None


def delete_newer(folder: Path, step: int) -> None:
    """Delete the checkpoints of steps after `step`, which a training that went back writes again."""
    for path in list_checkpoints(folder):
        if int(path.stem.split("-")[1]) > step:
            path.unlink(missing_ok=True)


def restore_checkpoint(path: Path, variables: Mapping[str, tf.Variable]) -> dict[str, Any]:
    """Restore the checkpoint at `path` into `variables`; return its record.

    All values are read and their shapes compared before the first variable changes. Raises UsageError for a
    checkpoint of another model, TemporaryError for a disk error, and DamagedError.
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
            f"The checkpoint {path} belongs to another model: {len(differing)} variables differ.",
            "Choose another --run-name for this run.",
            received=differing[0],
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _rename_damaged(path: Path) -> None:
    """Rename a damaged file so that no pattern for checkpoints matches it."""
    if path.exists():
        path.replace(path.with_name(_DAMAGED_PREFIX + path.name))


def _is_readable(path: Path) -> bool:
    try:
        _read(path)
    except DamagedError:
        return False
    return True


def _read(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    try:
        # Opened here because `np.load` does not close a damaged file.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(arrays.pop(_RECORD).tobytes())
    except MemoryError:
        raise  # not an error of the file
    except OSError as error:
        if error.errno in _FILE_ERRNOS:
            raise DamagedError(str(error)) from error
        raise TemporaryError(f"{path} could not be read.", "Try again.", received=error.strerror) from error
    except (*DAMAGE, KeyError, TypeError, AttributeError) as error:
        # The record is missing, or the file is no archive: Python 3.10 raises AttributeError, and NumPy
        # reports a pickle.
        reason = "it is not an archive of arrays" if "pickle" in str(error) else str(error)
        raise DamagedError(reason or type(error).__name__) from error
