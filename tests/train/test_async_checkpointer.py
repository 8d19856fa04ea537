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
from trainer.train.async_checkpointer import AsyncCheckpointer, CheckpointPolicy
from trainer.train.checkpoint import list_checkpoints, restore_best, restore_newest


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    weights, seen = tf.Variable([0.0]), []
    with AsyncCheckpointer(
        tmp_path, lambda: seen.append([path.name for path in list_checkpoints(tmp_path)])
    ) as saver:
        for step in range(1, 5):
            weights.assign([float(step)])
            saver.save(step, {"weights": weights}, {"at": step}, whole_epoch=step % 2 == 0)
            weights.assign([-1.0])
        assert saver.flush()
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000002.npz", "step-00000003-part.npz", "step-00000004.npz"
    ]  # fmt: skip
    # The callback after each save sees its file.
    assert [names[-1][5:13] for names in seen] == ["00000001", "00000002", "00000003", "00000004"]
    assert restore_newest(tmp_path, {"weights": weights}) == {"at": 4}
    np.testing.assert_array_equal(weights.numpy(), [4.0])


def test_best_weights_are_followed_up_before_the_checkpoint_that_knows_of_them(tmp_path: Path) -> None:
    weights, seen = tf.Variable([1.0]), []
    with AsyncCheckpointer(
        tmp_path, lambda: seen.append(sorted(path.name for path in tmp_path.iterdir()))
    ) as saver:
        saver.save_best(1, {"weights": weights})
        saver.save(5, {"weights": weights}, {}, whole_epoch=True)
        saver.flush()
    assert seen == [["best-000001.npz"], ["best-000001.npz", "step-00000005.npz"]]
    restore_best(tmp_path, 1, {"weights": weights})


def test_the_last_save_waits_for_no_older_one_that_has_not_begun(tmp_path: Path) -> None:
    weights, begun, released, seen = tf.Variable([1.0]), threading.Event(), threading.Event(), []

    def follow() -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir())[-1])
        begun.set()
        released.wait(30)

    with AsyncCheckpointer(tmp_path, follow) as saver:
        saver.save(1, {"weights": weights}, {}, whole_epoch=True)
        begun.wait(30)
        saver.save(2, {"weights": weights}, {}, whole_epoch=True)
        saver.save(3, {"weights": weights}, {}, whole_epoch=True, is_last=True)
        released.set()
        assert saver.flush()
    assert seen == ["step-00000001.npz", "step-00000003.npz"]
    assert saver.safe_step == 3
    # Pending best weights are not dropped: the last checkpoint refers to them.
    begun.clear()
    released.clear()
    with AsyncCheckpointer(tmp_path, follow) as saver:
        saver.save(4, {"weights": weights}, {}, whole_epoch=True)
        begun.wait(30)
        saver.save_best(2, {"weights": weights})
        threading.Timer(0.3, released.set).start()
        saver.save(5, {"weights": weights}, {}, whole_epoch=True, is_last=True)
        assert saver.flush()
    restore_best(tmp_path, 2, {"weights": weights})


def test_what_is_asked_before_a_save_may_forbid_it(tmp_path: Path) -> None:
    def forbid() -> None:
        raise UsageError("another process's by now")

    with AsyncCheckpointer(tmp_path, before_save=forbid) as saver:
        saver.save(1, {}, {}, whole_epoch=True)
        with pytest.raises(UsageError, match="another process's"):
            saver.flush()
    assert list(tmp_path.iterdir()) == []


def test_what_a_save_raised_is_raised_by_every_later_call(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with AsyncCheckpointer(tmp_path / "taken") as saver:
        saver.save(1, {}, {}, whole_epoch=True)
        for call in (saver.flush, lambda: saver.save(2, {}, {}, whole_epoch=True), saver.flush):
            with pytest.raises(UsageError, match="taken"):
                call()


def test_nothing_is_saved_after_a_save_that_failed(tmp_path: Path) -> None:
    begun, released = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        released.wait(30)
        raise UsageError("no room")

    with AsyncCheckpointer(tmp_path, fail) as saver:
        saver.save_best(1, {})
        begun.wait(30)
        saver.save(5, {}, {}, whole_epoch=True)  # it refers to the best weights
        released.set()
        with pytest.raises(UsageError, match="no room"):
            saver.flush()
        time.sleep(0.3)
    assert list_checkpoints(tmp_path) == []


def test_a_flush_waits_only_as_long_as_it_may(tmp_path: Path) -> None:
    released, overdue = threading.Event(), threading.Event()
    with AsyncCheckpointer(tmp_path, lambda: bool(released.wait(30)) and None, overdue.is_set) as saver:
        saver.save(1, {}, {}, whole_epoch=True)
        saver.save(2, {}, {}, whole_epoch=True)
        threading.Timer(0.3, overdue.set).start()
        assert not saver.flush()
        saver.save(3, {}, {}, whole_epoch=True)  # full and overdue: dropped without waiting
        overdue.clear()
        released.set()
        assert not saver.flush()  # the third save is missing
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001.npz", "step-00000002.npz"]


def test_what_waits_is_dropped_when_it_ends(tmp_path: Path) -> None:
    released = threading.Event()
    with AsyncCheckpointer(tmp_path, lambda: bool(released.wait(30)) and None) as saver:
        saver.save(1, {}, {}, whole_epoch=True)
        while not list_checkpoints(tmp_path):
            time.sleep(0.01)
        saver.save(2, {}, {}, whole_epoch=True)
    released.set()
    time.sleep(0.3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001.npz"]


def test_checkpoints_are_due_by_half_of_the_steps_or_by_minutes(tmp_path: Path) -> None:
    with AsyncCheckpointer(tmp_path) as saver:
        pace = CheckpointPolicy(CheckpointSpec(every_minutes=None, every_steps=10), saver)
        assert [pace.is_due(step) for step in (4, 5, 6)] == [False, True, True]
        pace.saved(5)
        assert [pace.is_due(step) for step in (9, 10)] == [False, True]
        assert not CheckpointPolicy(CheckpointSpec(), saver).is_due(10_000)
        pace = CheckpointPolicy(CheckpointSpec(every_minutes=0.001), saver)
        time.sleep(0.1)
        assert pace.is_due(1)
        assert not CheckpointPolicy(CheckpointSpec(every_minutes=None), saver).is_due(10_000)


def test_no_more_steps_than_were_allowed_are_done_without_a_safe_checkpoint(tmp_path: Path) -> None:
    released = threading.Event()
    with AsyncCheckpointer(tmp_path, lambda: bool(released.wait(30)) and None) as saver:
        pace = CheckpointPolicy(CheckpointSpec(every_steps=4), saver)
        pace.resumed(10)
        saver.save(12, {}, {}, whole_epoch=False)
        pace.make_room(14)  # returns at once: the checkpoint of step 10 is safe
        assert saver.safe_step == 10
        threading.Timer(0.3, released.set).start()
        pace.make_room(15)
        assert saver.safe_step == 12
