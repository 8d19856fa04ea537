"""Errors of `compare`, `runs`, `promote` and `rollback`: one message each, and no changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET
from helpers.fault_proxy import fault_proxy
from helpers.release_inputs import finished
from helpers.trainer_process import error_line, trainer

from trainer.release.challenge import promote
from trainer.runs.champion import CHAMPION
from trainer.storage import open_store
from trainer.storage.store import Store


@pytest.fixture
def output(bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return a bucket store of three finished runs, the second of which is the champion."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    store = open_store(f"gs://{BUCKET}/{tmp_path.name}")
    for name in ("one", "two", "three"):
        finished(store, tmp_path / "local", name)
        store.write(f"{name}/spec.yaml", b"recipe: demo\n")
    promote(store, "one")
    promote(store, "two")
    return store


def everything(store: Store) -> dict[str, str]:
    return {entry.name: entry.version for entry in store.entries()}


def test_bucket_without_permissions_is_reported(
    output: Store, bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(output)
    one, three = output.at("one"), output.at("three")
    commands = (
        ["runs", output.uri], ["compare", one, three], ["promote", three],
        ["promote", three, "--force"], ["rollback", output.uri],
    )  # fmt: skip
    for reads in (False, True):

        def choose(number: int, method: str, path: str, reads: bool = reads) -> str | None:
            return None if reads and method == "GET" else "forbidden"

        with fault_proxy(bucket_address, choose) as proxy:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
            for words in commands[3:] if reads else commands:
                line = error_line(trainer(*words, cache=tmp_path), 2)
                assert output.uri in line, words
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
        assert everything(output) == before


def test_deleted_champion_is_reported(output: Store, tmp_path: Path) -> None:
    for entry in output.entries("two/"):
        output.remove(entry.name)
    before = everything(output)
    assert "names a run that does not exist" in error_line(
        trainer("promote", output.at("three"), cache=tmp_path), 2
    )
    listed = trainer("runs", output.uri, cache=tmp_path)
    assert listed.stdout.splitlines()[-1].startswith("The champion two does not exist any more.")
    assert everything(output) == before
    done = trainer("promote", output.at("three"), "--force", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = output.read(CHAMPION)
    assert found is not None
    assert found.data == b"three\n"
    assert "any more" not in trainer("runs", output.uri, cache=tmp_path).stdout
    # A rollback starts from a deleted champion and skips the one before it, two, which is deleted too.
    for entry in output.entries("three/"):
        output.remove(entry.name)
    done = trainer("rollback", output.uri, cache=tmp_path)
    assert "one is the champion again, replacing three; skipped, because removed: two." in done.stdout
    assert "no earlier champion" in error_line(trainer("rollback", output.uri, cache=tmp_path), 2)
