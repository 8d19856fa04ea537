"""Retention of old runs under storage failures, concurrent processes and lost leases."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers.release_inputs import finished

from trainer.errors import TemporaryError, UsageError
from trainer.release.retention import keep_newest
from trainer.runs.champion import CHAMPION
from trainer.runs.publish import POINTER, RETIRED, is_finished, latest_run
from trainer.storage.folder import FolderStore
from trainer.storage.lease import EXPIRY_SECONDS
from trainer.storage.store import Content


class Stubborn(FolderStore):
    """Store that refuses to write the lease of run `three`."""

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        if name == ".three.lease":
            raise UsageError("It is held back.")
        return super().swap(name, data, version)


class Blind(FolderStore):
    """Store whose champion pointer cannot be read once a run is withdrawn."""

    def read(self, name: str) -> Content | None:
        if name == CHAMPION and list(self.root.glob(f"*/{RETIRED}")):
            raise TemporaryError("It cannot be read now.")
        return super().read(name)


def test_error_with_one_run_does_not_stop_retention_of_others(tmp_path: Path) -> None:
    for name in ("one", "two", "three", "four", "five"):
        finished(FolderStore(tmp_path / "runs"), tmp_path / "local", name)
    gone = keep_newest(Stubborn(tmp_path / "runs"), 1)
    assert gone.retired == ("four", "one", "two")
    assert gone.problems == ("It is held back.",)


def test_run_is_kept_when_the_pointers_cannot_be_read(tmp_path: Path) -> None:
    for name in ("one", "two"):
        finished(FolderStore(tmp_path / "runs"), tmp_path / "local", name)
    output = Blind(tmp_path / "runs")
    assert keep_newest(output, 1).problems == ("It cannot be read now.",)
    assert is_finished(output.below("one"))
    assert output.find(f"one/{RETIRED}") is None


class Slow(FolderStore):
    """Store in which, after the pointer is read, a run is published and the others are withdrawn."""

    def read(self, name: str) -> Content | None:
        found = super().read(name)
        if name == POINTER and found is not None and found.data == b"five\n":
            output = FolderStore(self.root)
            finished(output, self.root.parent / "more", "seven")
            keep_newest(output, 1)
        return found


def test_latest_run_is_found_while_the_pointer_moves(tmp_path: Path) -> None:
    for name in ("four", "five"):
        finished(FolderStore(tmp_path / "runs"), tmp_path / "local", name)
    assert latest_run(Slow(tmp_path / "runs")) == "seven"


class Robbed(FolderStore):
    """Store in which another process takes over a run once one of its files is removed."""

    def below(self, prefix: str) -> Robbed:
        return Robbed(super().below(prefix).root)

    def remove(self, name: str, version: str | None = None) -> None:
        super().remove(name, version)
        lease = self.root.parent / f".{self.root.name}.lease"
        if lease.exists():
            lease.write_text('{"id": "another"}')
            time.sleep(1.5 * EXPIRY_SECONDS / 6)  # until the next heartbeat


@pytest.mark.engine
def test_process_that_lost_the_lease_stops_removing_files(tmp_path: Path) -> None:
    output = Robbed(tmp_path / "runs")
    finished(output, tmp_path / "local", "one")
    output.write("one/model", b"")
    finished(output, tmp_path / "local", "two")
    keep_newest(output, 1)
    gone = keep_newest(output, 1, read_seconds=0)
    assert gone.removed == ()
    assert "has taken over this run" in gone.problems[0]
    assert {entry.name for entry in output.below("one").entries()} >= {RETIRED}
    assert len(output.below("one").entries()) == len(("model", "metrics.json", RETIRED))
