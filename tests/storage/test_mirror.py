"""The mirror: syncing a folder to a store, and restoring the folder from it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, BucketServer, OtherServer, bucket_server

from trainer.errors import TemporaryError
from trainer.storage import open_store
from trainer.storage.mirror import Mirror
from trainer.storage.store import Store


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer | OtherServer]:
    with bucket_server(page_size=3) as running:
        yield running


@pytest.fixture
def store(server: BucketServer | OtherServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
    return open_store(f"gs://{BUCKET}/{tmp_path.name}/run")


def fill(folder: Path) -> dict[str, bytes]:
    contents = {
        "spec.yaml": b"seed: 1\n",
        "checkpoints/step-1.npz": os.urandom(9 << 20),
        "events/log": b"one",
    }
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / ".spec.yaml.ab.tmp").write_bytes(b"half")
    return contents


def held(store: Store) -> dict[str, bytes]:
    return {entry.name: store.read(entry.name).data for entry in store.entries()}  # type: ignore[union-attr]


def test_sync_uploads_only_changes_and_makes_the_store_equal_to_the_folder(
    store: Store, tmp_path: Path
) -> None:
    contents = fill(tmp_path / "run")
    mirror, sent = Mirror(tmp_path / "run", store, apart=["_SUCCESS"]), []
    store.write("_SUCCESS", b"of someone else")
    assert mirror.waiting_bytes() == sum(map(len, contents.values()))
    mirror.sync(sent.append)
    assert held(store) == contents | {"_SUCCESS": b"of someone else"}
    assert sorted(sent) == sorted(map(len, contents.values()))
    sent.clear()
    (tmp_path / "run" / "events" / "log").write_bytes(b"one two")
    (tmp_path / "run" / "checkpoints" / "step-1.npz").unlink()
    mirror.sync(sent.append)
    assert sent == [7]
    assert held(store) == {
        "spec.yaml": b"seed: 1\n",
        "events/log": b"one two",
        "_SUCCESS": b"of someone else",
    }


def test_pull_restores_the_folder_and_the_last_sync_removes_unwanted_files(
    store: Store, tmp_path: Path
) -> None:
    contents = fill(tmp_path / "run")
    Mirror(tmp_path / "run", store).sync()
    back = Mirror(tmp_path / "back", store)
    back.pull(lambda name: not name.startswith("events/"))
    del contents["events/log"]
    assert {name: (tmp_path / "back" / name).read_bytes() for name in contents} == contents
    assert not (tmp_path / "back" / "events").exists()
    assert back.waiting_bytes() == 0
    (tmp_path / "back" / "spec.yaml").unlink()
    del contents["spec.yaml"]
    back.sync(is_whole=False)
    assert held(store).keys() == {*contents, "events/log"}
    back.sync()
    assert held(store) == contents


def test_files_that_grow_appear_or_disappear_during_a_sync_cause_no_error(
    store: Store, tmp_path: Path
) -> None:
    fill(tmp_path / "run")
    mirror, ended = Mirror(tmp_path / "run", store), threading.Event()

    def disturb() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            with open(tmp_path / "run" / "events" / "log", "ab") as file:
                file.write(b"more")
            (tmp_path / "run" / f"passing-{number}").write_bytes(b"x" * 1000)
            (tmp_path / "run" / f"passing-{number - 1}").unlink(missing_ok=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(5):
            mirror.sync()
    finally:
        ended.set()
        thread.join()
    mirror.sync()
    names = [path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*")]
    files = [name for name in names if (tmp_path / "run" / name).is_file() and not name.endswith(".tmp")]
    assert held(store) == {name: (tmp_path / "run" / name).read_bytes() for name in files}


def test_process_without_its_lease_changes_nothing_in_the_store(store: Store, tmp_path: Path) -> None:
    contents, lost = fill(tmp_path / "run"), threading.Event()

    def require() -> None:
        if lost.is_set():
            raise TemporaryError("lost")

    mirror = Mirror(tmp_path / "run", store, require=require)
    mirror.sync()
    lost.set()
    (tmp_path / "run" / "events" / "log").unlink()
    with pytest.raises(TemporaryError, match="lost"):
        mirror.sync()
    (tmp_path / "run" / "spec.yaml").write_bytes(b"seed: 2\n")
    with pytest.raises(TemporaryError, match="lost"):
        mirror.sync()
    assert held(store) == contents


def test_sync_of_a_local_run_does_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    mirror = Mirror(tmp_path / "run", None)
    mirror.pull(lambda name: True)
    mirror.sync()
    assert mirror.waiting_bytes() == 0
