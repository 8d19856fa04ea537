"""Profiling of chosen steps, which does not change the training result."""

from __future__ import annotations

from pathlib import Path

import pytest
import tensorflow as tf
from helpers.small_training import SMALL, Recorder, dark_and_light, do_train, untimed

from trainer.data.dataset import Dataset
from trainer.errors import StoppedError, UsageError
from trainer.spec import load_spec, spec_digest
from trainer.training.prefetch import BatchPrefetcher

TWO_EPOCHS = [*SMALL, "train.epochs=2", "train.steps_per_call=4"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def profiles(folder: Path) -> list[Path]:
    return sorted((folder / "profile" / "plugins" / "profile").glob("*/*.xplane.pb"))


def read_steps(path: Path) -> list[int]:
    """Return the first step of each call recorded in a profile."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    steps = []
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        names = {number: event.name for number, event in plane.event_metadata.items()}
        numbers = {stat.name: number for number, stat in plane.stat_metadata.items()}
        events = [event for line in plane.lines for event in line.events]
        steps += [
            stat.int64_value
            for event in events if names[event.metadata_id] == "train"
            for stat in event.stats if stat.metadata_id == numbers["step_num"]
        ]  # fmt: skip
    return steps


def test_blocks_end_at_the_boundaries_of_a_profile_and_contain_the_same_batches(dataset: Dataset) -> None:
    plain, cut = BatchPrefetcher(dataset.train, 8, 0), BatchPrefetcher(dataset.train, 8, 0, boundaries=(2, 3))
    plain.block_steps = cut.block_steps = 6
    assert [block.first_step for block in cut.blocks(0, 12)] == [0, 2, 3, 5, 6, 11]
    assert [block.first_step for block in plain.blocks(0, 12)] == [0, 5, 6, 11]
    batches = [
        [images.tobytes() for block in prefetcher.blocks(0, 12) for images in block.images]
        for prefetcher in (plain, cut)
    ]
    assert batches[0] == batches[1]


def test_profile_does_not_change_the_training(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    _, plain = do_train(load_spec(settings=TWO_EPOCHS), dataset, tmp_path / "plain")
    spec = load_spec(settings=[*TWO_EPOCHS, "train.profile=3-5"])
    assert spec_digest(spec) == spec_digest(load_spec(settings=TWO_EPOCHS))
    _, profiled = do_train(spec, dataset, tmp_path / "profiled", recorder)
    assert untimed(profiled.history) == untimed(plain.history)
    (profile,) = profiles(tmp_path / "profiled")
    # The second of these calls ran two steps, 4 and 5.
    assert read_steps(profile) == [3, 4]
    assert [call.step for call in recorder.calls][:4] == [1, 2, 3, 5]
    assert not profiles(tmp_path / "plain")
    assert any("tensorboard" in message for message in recorder.messages)


def test_resumed_run_profiles_the_remaining_steps(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=TWO_EPOCHS), dataset, tmp_path, stop_at=4)
    recorder = Recorder()
    do_train(load_spec(settings=[*TWO_EPOCHS, "train.profile=9-99"]), dataset, tmp_path, recorder)
    (profile,) = profiles(tmp_path)
    assert read_steps(profile)[0] == 9
    assert "train.profile requests steps up to 99, but the training has 12" in recorder.messages


def test_run_stopped_within_the_profiled_steps_profiles_the_rest_after_resuming(
    dataset: Dataset, tmp_path: Path
) -> None:
    settings = [*TWO_EPOCHS, "train.steps_per_call=1", "train.profile=2-6"]
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=settings), dataset, tmp_path, stop_at=4)
    (before,) = profiles(tmp_path)
    assert read_steps(before) == [2, 3, 4]
    before.rename(tmp_path / "before")  # profile names have a resolution of one second
    recorder = Recorder()
    do_train(load_spec(settings=settings), dataset, tmp_path, recorder)
    assert [read_steps(path) for path in profiles(tmp_path)] == [[5, 6]]
    assert "train.profile requests steps from 2 on, but 4 are already done" in recorder.messages


def test_training_continues_if_another_profiler_is_running(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    spec = load_spec(settings=[*TWO_EPOCHS, "train.profile=2-3"])
    tf.profiler.experimental.start(str(tmp_path / "other"))
    try:
        _, result = do_train(spec, dataset, tmp_path / "run", recorder)
    finally:
        tf.profiler.experimental.stop()
    assert len(result.history) == 2
    assert "Profiling is not possible: Another profiler is running." in recorder.messages


def test_profiled_steps_that_are_already_done_are_reported(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=TWO_EPOCHS), dataset, tmp_path, stop_at=4)
    recorder = Recorder()
    do_train(load_spec(settings=[*TWO_EPOCHS, "train.profile=2-3"]), dataset, tmp_path, recorder)
    assert any("are already done" in message for message in recorder.messages)
    assert not profiles(tmp_path)


@pytest.mark.parametrize("steps", ["20-10", "0-5", "7", "a-b"])
def test_invalid_profile_steps_are_rejected(steps: str) -> None:
    with pytest.raises(UsageError, match="profile"):
        load_spec(settings=[f"train.profile={steps}"])
