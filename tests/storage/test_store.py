"""The store interface: the same guarantees on local disk and in a bucket."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, BucketServer, OtherServer, bucket_server
from helpers.small_disk import small_disk

from trainer.errors import TemporaryError, TrainerError, UsageError
from trainer.storage import open_store
from trainer.storage.folder import FolderStore
from trainer.storage.gcs import make_client
from trainer.storage.store import Store, split_uri


@pytest.fixture(scope="module")
def bucket() -> Iterator[BucketServer | OtherServer]:
    with bucket_server(page_size=3) as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def store(
    request: pytest.FixtureRequest,
    bucket: BucketServer | OtherServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.address)
    return open_store(f"gs://{BUCKET}/{tmp_path.name}")


def test_written_files_are_read_and_listed(store: Store) -> None:
    assert store.read("a/b.txt") is None
    contents = {"a/b.txt": b"one", "a/c d.bin": bytes(range(256)) * 40, "a/ü.txt": b"", "b.txt": b"\r\n\x00"}
    for name, data in contents.items():
        store.write(name, data)
    for name, data in contents.items():
        found = store.read(name)
        assert found is not None
        assert found.data == data
    assert [entry.name for entry in store.entries()] == sorted(contents)
    assert [(entry.name, entry.size) for entry in store.entries("a/b")] == [("a/b.txt", 3)]
    assert [entry.name for entry in store.below("a").entries()] == ["b.txt", "c d.bin", "ü.txt"]
    assert store.below("").uri == store.uri
    store.remove("b.txt")
    store.remove("b.txt")
    assert store.read("b.txt") is None
    assert store.find("b.txt") is None
    assert [store.find(entry.name) for entry in store.entries()] == store.entries()
    assert store.at("a/b.txt") == f"{store.uri}/a/b.txt"


def test_create_succeeds_only_once(store: Store) -> None:
    assert store.create("marker", b"mine")
    assert not store.create("marker", b"mine")
    assert not store.create("marker", b"yours")
    assert (found := store.read("marker")) is not None
    assert found.data == b"mine"


def test_swap_requires_the_current_version(store: Store) -> None:
    assert store.swap("latest", b"one", None)
    assert not store.swap("latest", b"two", None)
    first = store.read("latest")
    assert first is not None
    second = store.swap("latest", b"two", first.version)
    assert not store.swap("latest", b"three", first.version)
    assert (found := store.read("latest")) is not None
    assert (found.data, found.version) == (b"two", second)
    store.remove("latest", first.version)
    assert store.read("latest") is not None
    store.remove("latest", second)
    assert store.read("latest") is None


@pytest.mark.parametrize("size", [0, 5, 3 * 1024 * 1024])
def test_upload_and_download_preserve_the_bytes(store: Store, size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "back" / "target.bin"
    source.write_bytes(os.urandom(size))
    store.upload(source, "models/one.bin")
    store.download("models/one.bin", target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["target.bin"]


def test_download_of_a_missing_file_keeps_the_old_one(store: Store, tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(b"good")
    with pytest.raises(TrainerError, match="does not exist"):
        store.download("missing.bin", tmp_path / "old.bin")
    assert (tmp_path / "old.bin").read_bytes() == b"good"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_exactly_one_of_eight_concurrent_writers_succeeds(store: Store) -> None:
    for turn in range(10):
        before = store.read("pointer")
        wins = race(
            lambda index, turn=turn, before=before: (
                store.create(f"marker-{turn}", b"same"),
                store.swap("pointer", b"%d %d" % (turn, index), before and before.version) is not None,
            )
        )
        assert sum(created for created, _ in wins) == 1
        assert sum(swapped for _, swapped in wins) == 1
        assert (now := store.read("pointer")) is not None
        assert now.data == b"%d %d" % (turn, [swapped for _, swapped in wins].index(True))


def test_missing_bucket_is_named(
    bucket: BucketServer | OtherServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.address)
    store = open_store("gs://no-such-bucket/runs")
    with pytest.raises(UsageError, match="gs://no-such-bucket"):
        store.read("latest")
    with pytest.raises(UsageError, match="gs://no-such-bucket"):
        store.entries()


@pytest.mark.parametrize("uri", ["gs://", "gs:///x", "s3://bucket/x", "gs://B_/x", "gs://-x/"])
def test_invalid_uri_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="Received"):
        open_store(uri)


def test_uri_is_split_into_bucket_and_prefix() -> None:
    assert split_uri("gs://photos") == ("photos", "")
    assert split_uri("gs://photos/a/b/") == ("photos", "a/b")


def race(act: object) -> list[tuple[bool, bool]]:
    """Call `act` in eight threads at the same time and return their results."""
    results: list[tuple[bool, bool]] = [(False, False)] * 8
    barrier = threading.Barrier(8)

    def run(index: int) -> None:
        barrier.wait()
        results[index] = act(index)  # type: ignore[operator]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gs:/bucket/runs", "two slashes"),
        ("S3:bucket/runs", "two slashes"),
        ("file:/tmp/runs", "two slashes"),
        ("file://tmp/runs", "three slashes"),
        ("s3://bucket/runs", "gs://BUCKET/PREFIX"),
    ],
)
def test_uri_with_one_slash_is_refused_with_an_example(uri: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_store(uri)


def test_file_url_is_converted_to_its_path(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    for host in ("", "localhost"):
        store = open_store(f"file://{host}{tmp_path}/a%20b")
        store.write("c", b"d")
        assert (tmp_path / "a b" / "c").read_bytes() == b"d"


@pytest.mark.parametrize("content", [None, "{bad"])
def test_invalid_credentials_file_is_an_error_and_not_anonymous_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    key = tmp_path / "key.json"
    if content is not None:
        key.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    with pytest.raises(UsageError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        make_client()


def test_listing_tolerates_folders_that_appear_and_disappear(tmp_path: Path) -> None:
    """Another run creates and renames folders while the listing is in progress."""
    store = FolderStore(tmp_path / "runs")
    store.write("releases/one.json", b"{}")
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            (made := tmp_path / "runs" / "two" / ".model.tmp" / "variables").mkdir(parents=True)
            (made / "data").write_bytes(b"")
            made.parent.rename(tmp_path / "runs" / "two" / "model")
            shutil.rmtree(tmp_path / "runs" / "two")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(500):
            assert "releases/one.json" in [entry.name for entry in store.entries()]
            assert [entry.name for entry in store.entries("releases/")] == ["releases/one.json"]
            assert store.find("two/model/variables") is None
            assert store.written_at("releases/one.json/none") is None
    finally:
        ended.set()
        thread.join()


def test_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    store.write("releases/one.json", b"{}")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [entry.name for entry in store.entries()] == ["releases/one.json"]
    assert store.find("loop") is None
    scandir = os.scandir

    def fail(path: str) -> object:
        if str(path).endswith("releases"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    for prefix in ("", "releases/"):
        with pytest.raises(TemporaryError, match=r"could not be read\. Try again"):
            store.entries(prefix)


def test_prefix_may_end_within_a_name(store: Store) -> None:
    for name in ("a/b/c", "a/bc", "ab", "b"):
        store.write(name, b"")
    for prefix, found in (("a", 3), ("a/", 2), ("a/b", 2), ("a/b/", 1), ("a/b/c", 1), ("c", 0), ("c/d", 0)):
        assert len(store.entries(prefix)) == found, prefix


def test_sha256_needs_no_temporary_files_or_names_their_full_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("large", b"x" * 100_000)
    expected = store.sha256("large")
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        if isinstance(store, FolderStore):
            assert store.sha256("large") == expected
            return
        with pytest.raises(TemporaryError, match=f"temporary files is full: {disk}. .* set TMPDIR"):
            store.sha256("large")
