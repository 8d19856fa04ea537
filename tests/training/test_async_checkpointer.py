"""The async checkpointer: order, snapshots at the time of the call, and propagated errors."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import UsageError
from trainer.spec import CheckpointSpec
from trainer.training.checkpoint import list_checkpoints, restore_best, restore_newest
from trainer.training.checkpoint_manager import AsyncCheckpointer, CheckpointPolicy


def test_checkpoint_has_the_values_at_the_time_of_the_call(tmp_path: Path) -> None:
    weights, seen = tf.Variable([0.0]), []
    with AsyncCheckpointer(
        tmp_path, lambda: seen.append([path.name for path in list_checkpoints(tmp_path)])
    ) as checkpointer:
        for step in range(1, 5):
            weights.assign([float(step)])
            checkpointer.save(step, {"weights": weights}, {"at": step}, whole_epoch=step % 2 == 0)
            weights.assign([-1.0])
        assert checkpointer.flush()
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000002.npz", "step-00000003-part.npz", "step-00000004.npz"
    ]  # fmt: skip
    # The callback after each save sees its file.
    assert [names[-1][5:13] for names in seen] == ["00000001", "00000002", "00000003", "00000004"]
    assert restore_newest(tmp_path, {"weights": weights}) == {"at": 4}
    np.testing.assert_array_equal(weights.numpy(), [4.0])


def test_best_weights_are_complete_before_the_checkpoint_that_refers_to_them(tmp_path: Path) -> None:
    weights, seen = tf.Variable([1.0]), []
    with AsyncCheckpointer(
        tmp_path, lambda: seen.append(sorted(path.name for path in tmp_path.iterdir()))
    ) as checkpointer:
        checkpointer.save_best(1, {"weights": weights})
        checkpointer.save(5, {"weights": weights}, {}, whole_epoch=True)
        checkpointer.flush()
    assert seen == [["best-000001.npz"], ["best-000001.npz", "step-00000005.npz"]]
    restore_best(tmp_path, 1, {"weights": weights})


def test_last_save_drops_older_saves_that_have_not_started(tmp_path: Path) -> None:
    weights, begun, released, seen = tf.Variable([1.0]), threading.Event(), threading.Event(), []

    def follow() -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir())[-1])
        begun.set()
        released.wait(30)

    with AsyncCheckpointer(tmp_path, follow) as checkpointer:
        checkpointer.save(1, {"weights": weights}, {}, whole_epoch=True)
        begun.wait(30)
        checkpointer.save(2, {"weights": weights}, {}, whole_epoch=True)
        checkpointer.save(3, {"weights": weights}, {}, whole_epoch=True, is_last=True)
        released.set()
        assert checkpointer.flush()
    assert seen == ["step-00000001.npz", "step-00000003.npz"]
    assert checkpointer.safe_step == 3
    # Pending best weights are not dropped: the last checkpoint refers to them.
    begun.clear()
    released.clear()
    with AsyncCheckpointer(tmp_path, follow) as checkpointer:
        checkpointer.save(4, {"weights": weights}, {}, whole_epoch=True)
        begun.wait(30)
        checkpointer.save_best(2, {"weights": weights})
        threading.Timer(0.3, released.set).start()
        checkpointer.save(5, {"weights": weights}, {}, whole_epoch=True, is_last=True)
        assert checkpointer.flush()
    restore_best(tmp_path, 2, {"weights": weights})


def test_hook_before_a_save_can_prevent_it(tmp_path: Path) -> None:
    def forbid() -> None:
        raise UsageError("another process's by now")

    with AsyncCheckpointer(tmp_path, before_save=forbid) as checkpointer:
        checkpointer.save(1, {}, {}, whole_epoch=True)
        with pytest.raises(UsageError, match="another process's"):
            checkpointer.flush()
    assert list(tmp_path.iterdir()) == []


def test_error_of_a_save_is_raised_by_every_later_call(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with AsyncCheckpointer(tmp_path / "taken") as checkpointer:
        checkpointer.save(1, {}, {}, whole_epoch=True)
        for call in (
            checkpointer.flush,
            lambda: checkpointer.save(2, {}, {}, whole_epoch=True),
            checkpointer.flush,
        ):
            with pytest.raises(UsageError, match="taken"):
                call()


def test_nothing_is_saved_after_a_failed_save(tmp_path: Path) -> None:
    begun, released = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        released.wait(30)
        raise UsageError("no room")

    with AsyncCheckpointer(tmp_path, fail) as checkpointer:
        checkpointer.save_best(1, {})
        begun.wait(30)
        checkpointer.save(5, {}, {}, whole_epoch=True)  # it refers to the best weights
        released.set()
        with pytest.raises(UsageError, match="no room"):
            checkpointer.flush()
        time.sleep(0.3)
    assert list_checkpoints(tmp_path) == []


def test_flush_returns_once_it_is_overdue(tmp_path: Path) -> None:
    released, overdue = threading.Event(), threading.Event()
    with AsyncCheckpointer(
        tmp_path, lambda: bool(released.wait(30)) and None, overdue.is_set
    ) as checkpointer:
        checkpointer.save(1, {}, {}, whole_epoch=True)
        checkpointer.save(2, {}, {}, whole_epoch=True)
        threading.Timer(0.3, overdue.set).start()
        assert not checkpointer.flush()
        checkpointer.save(3, {}, {}, whole_epoch=True)  # full and overdue: dropped without waiting
        overdue.clear()
        released.set()
        assert not checkpointer.flush()  # the third save is missing
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001.npz", "step-00000002.npz"]


def test_pending_saves_are_dropped_on_exit(tmp_path: Path) -> None:
    released = threading.Event()
    with AsyncCheckpointer(tmp_path, lambda: bool(released.wait(30)) and None) as checkpointer:
        checkpointer.save(1, {}, {}, whole_epoch=True)
        while not list_checkpoints(tmp_path):
            time.sleep(0.01)
        checkpointer.save(2, {}, {}, whole_epoch=True)
    released.set()
    time.sleep(0.3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001.npz"]


def test_checkpoint_is_due_after_half_of_the_steps_or_after_the_minutes(tmp_path: Path) -> None:
    with AsyncCheckpointer(tmp_path) as checkpointer:
        policy = CheckpointPolicy(CheckpointSpec(every_minutes=None, every_steps=10), checkpointer)
        assert [policy.is_due(step) for step in (4, 5, 6)] == [False, True, True]
        policy.record_save(5)
        assert [policy.is_due(step) for step in (9, 10)] == [False, True]
        assert not CheckpointPolicy(CheckpointSpec(), checkpointer).is_due(10_000)
        policy = CheckpointPolicy(CheckpointSpec(every_minutes=0.001), checkpointer)
        time.sleep(0.1)
        assert policy.is_due(1)
        assert not CheckpointPolicy(CheckpointSpec(every_minutes=None), checkpointer).is_due(10_000)


def test_policy_waits_for_a_save_before_too_many_steps_could_be_lost(tmp_path: Path) -> None:
    released = threading.Event()
    with AsyncCheckpointer(tmp_path, lambda: bool(released.wait(30)) and None) as checkpointer:
        policy = CheckpointPolicy(CheckpointSpec(every_steps=4), checkpointer)
        policy.record_resume(10)
        checkpointer.save(12, {}, {}, whole_epoch=False)
        policy.wait_for_saves(14)  # returns at once: the checkpoint of step 10 is safe
        assert checkpointer.safe_step == 10
        threading.Timer(0.3, released.set).start()
        policy.wait_for_saves(15)
        assert checkpointer.safe_step == 12
