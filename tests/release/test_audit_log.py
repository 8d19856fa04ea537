"""Audit records of champion decisions, and processes that end during a decision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.release_inputs import GAIN, LOSS, between, finished, measured
from helpers.watched_store import NOW, Watched

from trainer.cli.console import Console
from trainer.cli.gates import run_gates
from trainer.errors import StoppedError, TemporaryError, UsageError
from trainer.release.audit_log import champion_before, read_records, was_decided, write_record
from trainer.release.challenge import challenge, promote, rollback
from trainer.runs import open_run_folder
from trainer.runs.champion import read_champion
from trainer.shutdown import GracefulShutdown
from trainer.spec import load_spec
from trainer.storage.folder import FolderStore
from trainer.storage.store import Store

ASK = between({"one": 0.6, "two": 0.8, "three": 0.9})


def stop_before(do: Callable[[], str | None]) -> str | None:
    raise StoppedError("before")


def stop_after(do: Callable[[], str | None]) -> str | None:
    do()
    raise StoppedError("after")


@pytest.fixture
def output(tmp_path: Path) -> FolderStore:
    """Return a store of three finished runs, the first of which is the champion."""
    store = FolderStore(tmp_path / "runs")
    for name in ("one", "two", "three"):
        finished(store, tmp_path / "local", name)
    promote(store, "one")
    return store


def test_crash_after_the_pointer_moved_leaves_the_record(output: FolderStore) -> None:
    with pytest.raises(StoppedError):
        challenge(Watched(output.root, stop_after), "two", GAIN, LOSS, ASK)
    assert read_champion(output).name == "two"
    assert was_decided(output, "two")
    assert champion_before(output, "two") == "one"
    assert read_records(output, "two")[0]["accuracy"]["difference"] > 0.1


def test_record_without_pointer_move_has_no_effect(output: FolderStore) -> None:
    with pytest.raises(StoppedError):
        challenge(Watched(output.root, stop_before), "two", GAIN, LOSS, ASK)
    assert read_champion(output).name == "one"
    assert not was_decided(output, "two")
    challenge(output, "three", GAIN, LOSS, ASK)
    assert not was_decided(output, "two")
    assert not challenge(output, "two", GAIN, LOSS, ASK).is_champion
    assert was_decided(output, "two")
    assert rollback(output).message == "one is the champion again, replacing three"


def test_each_rollback_goes_back_one_release(either_store: Store, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        finished(either_store, tmp_path / "local", name)
    for name in ("one", "two", "two", "three", "one"):
        promote(either_store, name)
    assert [record["run"] for record in read_records(either_store)] == ["one", "two", "three", "one"]
    for name in ("three", "two", "one"):
        assert rollback(either_store).message.startswith(f"{name} is the champion again")
    assert champion_before(either_store, "one") is None


def test_rollback_skips_removed_champions_and_records_how_many_releases_it_undoes(
    either_store: Store, tmp_path: Path
) -> None:
    names = ("zero", "one", "two", "three", "four")
    for name in names:
        finished(either_store, tmp_path / "local", name)
        promote(either_store, name)
    for name in ("one", "three"):
        for entry in either_store.entries(f"{name}/"):
            either_store.remove(entry.name)
    outcome = rollback(either_store)
    assert outcome.message == "two is the champion again, replacing four; skipped, because removed: three"
    record = read_records(either_store)[-1]
    assert (record["kind"], record["run"], record["replaced"]) == ("rollback", "two", "four")
    assert (record["releases_undone"], record["skipped"]) == (2, ["three"])
    assert champion_before(either_store, "two") == "one"
    assert rollback(either_store).message.startswith("zero is the champion again, replacing two; skipped")
    with pytest.raises(UsageError, match=r"no earlier champion.* Received: champion zero in"):
        rollback(either_store)
    promote(either_store, "four")
    assert rollback(either_store).message == "zero is the champion again, replacing four"


def test_rollback_never_restores_the_current_champion(either_store: Store, tmp_path: Path) -> None:
    for name in ("zero", "one", "two"):
        finished(either_store, tmp_path / "local", name)
    for name in ("zero", "one", "two", "one"):
        promote(either_store, name)
    for entry in either_store.entries("two/"):
        either_store.remove(entry.name)
    assert rollback(either_store).message.startswith("zero is the champion again, replacing one")
    with pytest.raises(UsageError, match="no earlier champion"):
        rollback(either_store)


def test_rollback_reads_records_of_earlier_versions(either_store: Store, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        finished(either_store, tmp_path / "local", name)
        promote(either_store, name)
    record = rollback(either_store).record
    content = json.loads(((found := either_store.read(record)) and found.data) or b"{}")
    for key in ("releases_undone", "skipped"):
        del content[key]
    either_store.write(record, json.dumps(content).encode())
    assert rollback(either_store).message == "one is the champion again, replacing two"


def test_lost_race_leaves_no_record(output: FolderStore) -> None:
    def be_late(do: Callable[[], str | None]) -> str | None:
        if read_champion(output).name == "one":
            promote(output, "three")
        return do()

    assert not challenge(Watched(output.root, be_late), "two", GAIN, LOSS, ASK).is_champion
    assert [(record["run"], record["is_released"]) for record in read_records(output)] == [
        ("one", True), ("three", True), ("two", False),
    ]  # fmt: skip


def test_files_that_are_not_records_are_ignored(either_store: Store, tmp_path: Path) -> None:
    finished(either_store, tmp_path / "local", "one")
    record = promote(either_store, "one").record
    for name, data in (
        ("releases/notes.json", b"{}"), ("releases/notes.txt", b"a"),
        (record.replace("20", "19", 1), b'{"kin'),
        (record.replace("20", "18", 1), b"[1]"), (record.replace("20", "17", 1), b"[" * 100_000),
    ):  # fmt: skip
        either_store.write(name, data)
    assert [record["run"] for record in read_records(either_store)] == ["one"]
    assert was_decided(either_store, "one")


def test_records_of_a_deleted_run_do_not_apply_to_a_new_run_of_its_name(
    either_store: Store, tmp_path: Path
) -> None:
    write_record(either_store, "challenge", "one", {"is_released": False})
    finished(either_store, tmp_path / "local", "one")
    assert not was_decided(either_store, "one")
    write_record(either_store, "challenge", "one-2", {"is_released": False})
    assert not was_decided(either_store, "one")
    write_record(either_store, "challenge", "one", {"is_released": False})
    assert was_decided(either_store, "one")


def test_rollback_during_another_change_is_refused(output: FolderStore) -> None:
    promote(output, "two")

    def be_late(do: Callable[[], str | None]) -> str | None:
        promote(output, "three")
        return do()

    with pytest.raises(TemporaryError, match="changed during the rollback"):
        rollback(Watched(output.root, be_late))
    assert read_champion(output).name == "three"  # and not the run that the rollback would replace
    assert len(read_records(output)) == 3


def test_records_are_ordered_although_a_clock_is_ahead(output: FolderStore) -> None:
    promote(output, "two")
    record = promote(output, "three").record
    ahead = json.loads((output.root / record).read_text()) | {"decided": "2099-01-01T00:00:00.000000+00:00"}
    (output.root / record).unlink()
    later = f"releases/20990101T000000.000000Z{record[record.index('Z') + 1 :]}"
    output.write(later, json.dumps(ahead).encode())
    assert rollback(output).message.startswith("two is the champion again")
    assert rollback(output).message.startswith("one is the champion again")
    write_record(output, "challenge", "two", {"is_released": False})
    assert was_decided(output, "two")


@pytest.mark.parametrize(
    ("published", "earliest"),
    [
        ("", "2026"),
        ("2026-01-01T00:00:00", "2026"),
        ("2099-01-01T00:00:00+01:00", "2098"),
        ("last week", "2026"),
    ],
)
def test_record_is_written_despite_an_invalid_publication_time(
    published: str, earliest: str, output: FolderStore
) -> None:
    output.write("two/MANIFEST.json", json.dumps({"published": published}).encode())
    write_record(output, "challenge", "two", {"is_released": False})
    assert read_records(output, "two")[0]["decided"] >= earliest


@pytest.mark.parametrize("is_finished_before", [False, True])
def test_lease_of_the_run_is_held_during_its_challenge(is_finished_before: bool, tmp_path: Path) -> None:
    """The lease keeps other processes from withdrawing or judging the run."""
    has_lease = []

    def look(do: Callable[[], str | None]) -> str | None:
        has_lease.append((tmp_path / "runs" / ".one.lease").exists())
        return do()

    spec = load_spec(
        recipe="demo",
        overrides={"output": str(tmp_path / "runs"), "run_name": "one", "publish": {"release": True}},
    )
    folder = opened = open_run_folder(spec, NOW, tmp_path / "cache")
    measured(folder.output, tmp_path / "local", "one", 18)
    if is_finished_before:
        folder.release()
        folder = open_run_folder(spec, NOW, tmp_path / "cache")
        assert folder.finished
    folder = replace(folder, output=Watched(tmp_path / "runs", look))
    with Console(1.0) as console:
        run_gates(folder, spec, tmp_path / "cache", console, GracefulShutdown(), None)
    opened.release()
    assert has_lease == [True]
    assert read_champion(folder.output).name == "one"
    assert not (tmp_path / "runs" / ".one.lease").exists()
