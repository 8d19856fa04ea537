"""Checkpoints: damaged files are skipped on restore, and I/O errors do not mark a file as damaged."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_training import SMALL, dark_and_light, do_train, learner_for

from trainer.data.dataset import Dataset
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.errors import TemporaryError
from trainer.spec import load_spec
from trainer.training import AsyncCheckpointer, HostSync, checkpoint_manager
from trainer.training.checkpoint import (
    list_checkpoints,
    restore_best,
    restore_newest,
    save_best,
    save_checkpoint,
    take_snapshot,
)
from trainer.training.checkpoint_manager import CheckpointManager


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


@pytest.mark.parametrize("damage", ["empty", "text", "array", "no record", "folder"])
def test_restore_skips_every_kind_of_damaged_checkpoint(
    dataset: Dataset, tmp_path: Path, damage: str
) -> None:
    learner = learner_for(load_spec(settings=SMALL), dataset)
    save_checkpoint(tmp_path, 1, take_snapshot(learner.variables()), {"at": 1})
    newest = save_checkpoint(tmp_path, 2, take_snapshot(learner.variables()), {"at": 2})
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    elif damage == "array":
        with open(newest, "wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "no record":
        np.savez(newest, one=np.zeros(3))
    else:
        newest.write_bytes(b"" if damage == "empty" else b"zz")
    assert restore_newest(tmp_path, learner.variables()) == {"at": 1}
    # The damaged file is renamed, so that later checkpoints are newer than all listed ones.
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001.npz"]
    assert (tmp_path / "damaged-step-00000002.npz").exists()


def test_best_weights_of_abandoned_progress_are_deleted(dataset: Dataset, tmp_path: Path) -> None:
    learner = learner_for(load_spec(settings=SMALL), dataset)
    arrays = take_snapshot(learner.inference_variables())
    for epoch in (24, 25, 26, 27):
        save_best(tmp_path, epoch, arrays)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "best-000025.npz", "best-000026.npz", "best-000027.npz",
    ]  # fmt: skip
    # Training restarts from the beginning because its checkpoints are damaged.
    for epoch in (1, 2):
        save_best(tmp_path, epoch, arrays)
        restore_best(tmp_path, epoch, learner.inference_variables())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["best-000001.npz", "best-000002.npz"]


def test_only_the_chief_deletes_the_checkpoints_of_a_diverged_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes may share a disk, and the chief may have gone on when a worker gets here."""

    def manager(index: int, checkpointer: AsyncCheckpointer) -> CheckpointManager:
        process = ProcessInfo(("localhost:1", "localhost:2"), index)
        learner: Any = None  # not used
        return CheckpointManager(learner, checkpointer, HostSync(ProcessGroup(process)), print)

    for name in ("step-00000006.npz", "step-00000007-part.npz", "step-00000008-part.npz"):
        (tmp_path / name).write_bytes(b"")
    with AsyncCheckpointer(tmp_path) as checkpointer:
        chief, worker = (manager(index, checkpointer) for index in (0, 1))
        worker.delete_partial()
        assert len(list_checkpoints(tmp_path)) == 3

        def list_and_lose(folder: Path, whole_epochs: bool = False) -> list[Path]:
            paths = list_checkpoints(folder, whole_epochs)
            if not whole_epochs:
                (folder / "step-00000007-part.npz").unlink()
            return paths

        monkeypatch.setattr(checkpoint_manager, "list_checkpoints", list_and_lose)
        chief.delete_partial()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000006.npz"]


def test_disk_error_does_not_mark_a_checkpoint_as_damaged(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_for(load_spec(settings=SMALL), dataset)
    path = save_checkpoint(tmp_path, 1, take_snapshot(learner.variables()), {"at": 1})

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(TemporaryError, match="Input/output error"):
        restore_newest(tmp_path, learner.variables())
    assert list_checkpoints(tmp_path) == [path]


def test_restore_falls_back_to_the_checkpoint_before_a_damaged_one(dataset: Dataset, tmp_path: Path) -> None:
    spec = load_spec(settings=SMALL)
    learner, _ = do_train(spec, dataset, tmp_path)
    older, newest = list_checkpoints(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    record = restore_newest(tmp_path / "checkpoints", learner.variables())
    assert record is not None
    assert f"step-{record['standing']['step']:08d}.npz" == older.name
