"""A profile of some steps: of exactly these, and without a trace in what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_training import SMALL, Recorder, dark_and_light, do_train, untimed

from trainer.data.dataset import Dataset
from trainer.exits import StoppedError, UsageError
from trainer.spec import load_spec, spec_digest
from trainer.train.feed import Feed

TWO_EPOCHS = [*SMALL, "train.epochs=2", "train.steps_per_call=4"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


def profiles(folder: Path) -> list[Path]:
    return sorted((folder / "profile" / "plugins" / "profile").glob("*/*.xplane.pb"))


def test_blocks_end_at_the_borders_of_a_profile_and_hold_the_same_batches(dataset: Dataset) -> None:
    plain, cut = Feed(dataset.train, 8, 0), Feed(dataset.train, 8, 0, borders=(2, 3))
    plain.block_steps = cut.block_steps = 6
    assert [block.first_step for block in cut.blocks(0, 12)] == [0, 2, 3, 5, 6, 11]
    assert [block.first_step for block in plain.blocks(0, 12)] == [0, 5, 6, 11]
    batches = [
        [images.tobytes() for block in feed.blocks(0, 12) for images in block.images] for feed in (plain, cut)
    ]
    assert batches[0] == batches[1]


def test_a_profile_changes_nothing_of_what_is_trained(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    _, plain = do_train(load_spec(settings=TWO_EPOCHS), dataset, tmp_path / "plain")
    spec = load_spec(settings=[*TWO_EPOCHS, "train.profile=3-5"])
    assert spec_digest(spec) == spec_digest(load_spec(settings=TWO_EPOCHS))
    _, found = do_train(spec, dataset, tmp_path / "found", recorder)
    assert untimed(found.history) == untimed(plain.history)
    assert len(profiles(tmp_path / "found")) == 1
    assert not profiles(tmp_path / "plain")
    assert any("tensorboard" in message for message in recorder.messages)


def test_a_run_that_goes_on_profiles_what_is_still_to_come(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=TWO_EPOCHS), dataset, tmp_path, stop_at=4)
    recorder = Recorder()
    do_train(load_spec(settings=[*TWO_EPOCHS, "train.profile=9-99"]), dataset, tmp_path, recorder)
    assert len(profiles(tmp_path)) == 1
    assert "train.profile asks for steps up to 99; there are 12" in recorder.messages


def test_steps_that_are_done_already_are_told(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        do_train(load_spec(settings=TWO_EPOCHS), dataset, tmp_path, stop_at=4)
    recorder = Recorder()
    do_train(load_spec(settings=[*TWO_EPOCHS, "train.profile=2-3"]), dataset, tmp_path, recorder)
    assert any("are done already" in message for message in recorder.messages)
    assert not profiles(tmp_path)


@pytest.mark.parametrize("steps", ["20-10", "0-5", "7", "a-b"])
def test_steps_that_are_none_are_refused(steps: str) -> None:
    with pytest.raises(UsageError, match="profile"):
        load_spec(settings=[f"train.profile={steps}"])
