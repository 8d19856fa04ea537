"""Retention of runs: which are kept, and protection of runs in use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from helpers.release_inputs import between, finished

from trainer.cli.compare import read_runs
from trainer.cli.paths import local_model
from trainer.cli.predict import verify_command
from trainer.data.progress import SilentProgress
from trainer.errors import TemporaryError, UsageError
from trainer.evaluate.metrics import Predictions
from trainer.release.challenge import challenge, promote, rollback
from trainer.release.overview import overview
from trainer.release.retention import keep_newest
from trainer.runs import find_start, open_run_folder
from trainer.runs.champion import CHAMPION, read_champion
from trainer.runs.publish import MANIFEST, MARKER, RETIRED, is_finished, latest_run, move_pointer
from trainer.spec import load_spec
from trainer.storage import open_store
from trainer.storage.folder import FolderStore
from trainer.storage.lease import take_lease
from trainer.storage.store import Store

NOW = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def output(either_store: Store, tmp_path: Path) -> Store:
    """Return five finished runs (one: former champion, two: champion) and an unfinished one, six."""
    for name in ("one", "two", "three", "four", "five"):
        finished(either_store, tmp_path / "local", name)
        if name in ("one", "two"):
            promote(either_store, name)
    either_store.write("six/spec.yaml", b"")
    return either_store


def names_of(output: Store) -> set[str]:
    return {entry.name.partition("/")[0] for entry in output.entries() if "/" in entry.name} - {"releases"}


def test_newest_runs_champion_and_previous_champion_are_kept(output: Store) -> None:
    gone = keep_newest(output, 1)
    assert (gone.retired, gone.removed) == (("four", "three"), ())
    assert {name for name in names_of(output) if is_finished(output.below(name))} == {"one", "two", "five"}
    # Readers that started earlier still find every file; new readers are refused.
    assert output.read("three/metrics.json")
    output.write("three/spec.yaml", b"")  # runs are found by this file
    states = {row.name: row.state for row in overview(output)}
    assert states["three"] == "retired"
    assert rollback(output).is_champion


def test_retired_run_is_removed_after_the_read_period(output: Store) -> None:
    keep_newest(output, 2)
    assert keep_newest(output, 2).removed == ()
    assert "three" in names_of(output)
    gone = keep_newest(output, 2, read_seconds=0)
    assert (gone.retired, gone.removed) == ((), ("three",))
    assert names_of(output) == {"one", "two", "four", "five", "six"}
    assert latest_run(output) == "five"
    assert not (Path(output.uri) / "three").exists()


def test_run_of_another_process_is_not_retired(output: Store) -> None:
    lease = take_lease(output, ".three.lease", lambda words: None, expiry_seconds=1.0)
    try:
        assert keep_newest(output, 1, read_seconds=0).retired == ("four",)
    finally:
        lease.release()
    assert is_finished(output.below("three"))


def test_half_retired_run_is_repaired_after_a_crash(output: Store) -> None:
    for name in ("three", "five"):
        output.write(f"{name}/{RETIRED}", b"")
    keep_newest(output, 1)
    assert output.read(f"three/{MARKER}") is None
    assert is_finished(output.below("five"))
    assert output.read(f"five/{RETIRED}") is None


def test_withdrawn_run_is_not_restarted_and_cannot_be_champion(output: Store, tmp_path: Path) -> None:
    keep_newest(output, 1)
    spec = load_spec(recipe="demo", overrides={"output": output.uri, "run_name": "three"})
    with pytest.raises(UsageError, match=r"exceeded publish\.keep_runs"):
        open_run_folder(spec, NOW, tmp_path / "cache")
    with pytest.raises(UsageError, match=r"The run exceeded publish\.keep_runs"):
        challenge(output, "three", 0.0, 0.05, between({}))
    assert read_champion(output).name == "two"
    # A manual promotion restores the run as long as its files exist.
    assert promote(output, "three").is_champion
    assert is_finished(output.below("three"))


def test_run_is_never_both_champion_and_withdrawn(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "runs"))
    for number in range(20):
        for name in (f"old-{number}", f"new-{number}"):
            finished(output, tmp_path / "local", name)
        at_once(
            lambda number=number: promote(open_store(output.uri), f"old-{number}"),
            lambda: keep_newest(open_store(output.uri), 1),
        )
        if output.read(CHAMPION) is not None:
            assert is_finished(output.below(read_champion(output).name))


def test_challenger_withdrawn_during_its_challenge_does_not_become_champion(output: Store) -> None:
    def ask(champion: str, challenger: str) -> tuple[Predictions, Predictions, str]:
        keep_newest(output, 1)
        return between({"two": 0.6, "three": 0.9})(champion, challenger)

    with pytest.raises(UsageError, match=r"The run exceeded publish\.keep_runs"):
        challenge(output, "three", 0.0, 0.05, ask)
    assert read_champion(output).name == "two"


def test_withdrawn_previous_champion_is_restored(output: Store) -> None:
    promote(output, "three")
    assert keep_newest(output, 1).retired == ("four", "one")
    assert rollback(output).message.startswith("two is the champion again")
    gone = keep_newest(output, 1, read_seconds=0)
    assert (gone.retired, gone.removed) == (("three",), ("four",))
    assert is_finished(output.below("one"))
    assert output.find(f"one/{RETIRED}") is None
    assert rollback(output).message.startswith("one is the champion again")


def test_champion_before_a_removed_one_is_kept(output: Store) -> None:
    promote(output, "three")
    for entry in output.entries("two/"):
        output.remove(entry.name)
    assert keep_newest(output, 1).retired == ("four",)
    assert is_finished(output.below("one"))
    assert rollback(output).message.startswith("one is the champion again")


def test_newest_runs_are_those_published_last(output: Store, tmp_path: Path) -> None:
    if isinstance(output, FolderStore):
        for age, name in enumerate(("one", "two", "three", "four", "five")):
            os.utime(output.root / name / MARKER, (1e9 - age, 1e9 - age))
        assert keep_newest(output, 2).retired == ("three",)


def test_second_rollback_restores_a_withdrawn_run(output: Store) -> None:
    for name in ("three", "four"):
        promote(output, name)
    assert keep_newest(output, 1).retired == ("one", "two")
    assert rollback(output).message.startswith("three is the champion again")
    assert rollback(output).message.startswith("two is the champion again")
    assert is_finished(output.below("two"))


def test_restored_run_is_not_the_latest(output: Store) -> None:
    promote(output, "three")
    keep_newest(output, 1)
    assert promote(output, "one").is_champion
    move_pointer(output, "one")  # as a restart of this run does
    assert latest_run(output) == "five"


def test_run_leased_by_another_process_is_not_restored(output: Store) -> None:
    promote(output, "three")
    keep_newest(output, 1)
    lease = take_lease(output, ".one.lease", lambda words: None, expiry_seconds=1.0)
    try:
        promote(output, "two")
        keep_newest(output, 1)
        with pytest.raises(TemporaryError, match="working on this run"):
            promote(output, "one")
    finally:
        lease.release()
    assert promote(output, "one").is_champion


def test_withdrawn_run_is_reported_by_every_command(output: Store, tmp_path: Path) -> None:
    keep_newest(output, 1)
    place = output.at("three")
    for read in (
        lambda: read_runs([place, place]), lambda: verify_command(place), lambda: find_start(output, place),
        lambda: local_model(place, tmp_path, SilentProgress()),
        lambda: local_model(f"{place}/model", tmp_path, SilentProgress()),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"The run exceeded publish\.keep_runs"):
            read()
    output.remove(f"three/{MANIFEST}")
    with pytest.raises(UsageError, match="its files are being deleted"):
        read_runs([place, place])


def test_run_withdrawn_while_waiting_for_its_lease_is_not_started(output: Store, tmp_path: Path) -> None:
    lease = take_lease(output, ".seven.lease", lambda words: None)

    class Screen(SilentProgress):
        def on_message(self, message: str) -> None:
            finished(output, tmp_path / "local", "seven")
            marker = output.read(f"seven/{MARKER}")
            assert marker is not None
            output.write(f"seven/{RETIRED}", marker.data)
            output.remove(f"seven/{MARKER}")
            lease.release()

    spec = load_spec(recipe="demo", overrides={"output": output.uri, "run_name": "seven"})
    with pytest.raises(UsageError, match=r"exceeded publish\.keep_runs"):
        open_run_folder(spec, NOW, tmp_path / "cache", progress=Screen())
    assert output.find(f"seven/{MANIFEST}")


def at_once(*works: Callable[[], object]) -> None:
    """Run all works concurrently in threads, and ignore `UsageError`."""
    gate = threading.Barrier(len(works))

    def do(work: Callable[[], object]) -> None:
        gate.wait(20)
        with suppress(UsageError):
            work()

    threads = [threading.Thread(target=do, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
