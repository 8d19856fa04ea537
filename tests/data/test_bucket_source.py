"""Images in a bucket: complete downloads, reuse of the local copy, and errors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.archives import FILES, make_zip, tree
from helpers.bucket_server import BUCKET, BucketServer, OtherServer, bucket_server

from trainer.data.bucket import require_safe
from trainer.data.fetch import build_buckets, fetch_source
from trainer.data.progress import SilentProgress
from trainer.data.readers import read_layout
from trainer.data.weights import find_weights
from trainer.errors import DataError, TrainerError, UsageError
from trainer.spec import DataSpec, PretrainedSpec
from trainer.storage import open_store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer | OtherServer]:
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        yield server


def fetch(source: str, cache: Path, checksum: str | None = None, most: int = 1 << 30) -> Path:
    return fetch_source(source, checksum, cache, most, SilentProgress())


def put_tree(prefix: str) -> None:
    store = open_store(f"gs://{BUCKET}/{prefix}")
    for name, data in FILES.items():
        store.write(name, data)


def test_bucket_folder_is_downloaded_completely_and_only_once(
    server: BucketServer | OtherServer, tmp_path: Path
) -> None:
    put_tree("pets")
    folder = fetch(f"gs://{BUCKET}/pets", tmp_path)
    assert tree(folder) == FILES
    before = server.asked
    assert fetch(f"gs://{BUCKET}/pets/", tmp_path) == folder
    if before is not None and server.asked is not None:
        assert server.asked - before <= 3  # metadata and listings only, no downloads
    changed = next(iter(FILES))
    open_store(f"gs://{BUCKET}/pets").write(changed, b"new")
    assert tree(fetch(f"gs://{BUCKET}/pets", tmp_path)) == {**FILES, changed: b"new"}


def test_archive_in_a_bucket_is_verified_and_extracted(
    server: BucketServer | OtherServer, tmp_path: Path
) -> None:
    archive = make_zip(tmp_path / "pets.zip", FILES)
    open_store(f"gs://{BUCKET}/sets").upload(archive, "pets.zip")
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    assert tree(fetch(f"gs://{BUCKET}/sets/pets.zip", tmp_path / "cache", f"md5:{right}")) == FILES
    with pytest.raises(DataError, match="wrong checksum"):
        fetch(f"gs://{BUCKET}/sets/pets.zip", tmp_path / "cache", f"md5:{'0' * 32}")


def test_missing_object_or_bucket_is_an_error(server: BucketServer | OtherServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such object or folder"):
        fetch(f"gs://{BUCKET}/nothing", tmp_path)
    with pytest.raises(UsageError, match="bucket does not exist"):
        fetch("gs://nobodys/pets", tmp_path)


def test_folder_above_the_size_limit_is_rejected(server: BucketServer | OtherServer, tmp_path: Path) -> None:
    put_tree("pets")
    with pytest.raises(DataError, match=r"data\.max_extracted_mib"):
        fetch(f"gs://{BUCKET}/pets", tmp_path, most=10)


@pytest.mark.parametrize("name", ["a//b.png", "x" * 300])
def test_object_names_that_are_not_file_names_are_rejected(
    server: BucketServer | OtherServer, tmp_path: Path, name: str
) -> None:
    open_store(f"gs://{BUCKET}/odd").write(name, b"x")
    with pytest.raises(TrainerError, match="not a valid file name"):
        fetch(f"gs://{BUCKET}/odd", tmp_path)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", ["a/../../out.png", "../out.png", "/etc/out.png", "./a.png", "a\0b.png"])
def test_object_names_that_lead_out_of_the_folder_are_rejected(tmp_path: Path, name: str) -> None:
    # Cloud Storage accepts these names; the emulator does not.
    with pytest.raises(DataError, match="not a valid file name"):
        require_safe(name, open_store(str(tmp_path)))


def test_import_file_refers_to_images_in_buckets(server: BucketServer | OtherServer, tmp_path: Path) -> None:
    store = open_store(f"gs://{BUCKET}/sets/pets")
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png", "unlisted.png"):
        store.write(name, name.encode())
    (tmp_path / "import.csv").write_text(
        f"training,gs://{BUCKET}/sets/pets/cats/1.png,cat\n"
        f"training,gs://{BUCKET}/sets/pets/dogs/1.png,dog\n"
        f"test,gs://{BUCKET}/sets/pets/cats/2.png,cat\n"
        f"test,gs://{BUCKET}/sets/pets/dogs/9.png,dog\n"
    )
    fetch_rows = build_buckets(DataSpec(), tmp_path / "cache", SilentProgress())
    items, rejections, layout, _ = read_layout(tmp_path / "import.csv", "auto", fetch_rows)
    assert layout == "import"
    assert [(item.name, item.label, item.split, item.read()) for item in items] == [
        (f"gs://{BUCKET}/sets/pets/cats/1.png", "cat", "train", b"cats/1.png"),
        (f"gs://{BUCKET}/sets/pets/cats/2.png", "cat", "test", b"cats/2.png"),
        (f"gs://{BUCKET}/sets/pets/dogs/1.png", "dog", "train", b"dogs/1.png"),
    ]
    assert [(rejection.name, rejection.reason) for rejection in rejections] == [
        ("import.csv:4", f"no such object: gs://{BUCKET}/sets/pets/dogs/9.png")
    ]
    before = server.asked
    read_layout(tmp_path / "import.csv", "auto", fetch_rows)
    if before is not None and server.asked is not None:
        assert server.asked - before == 1  # one listing


def test_import_file_in_a_bucket_refers_to_images_beside_it(
    server: BucketServer | OtherServer, tmp_path: Path
) -> None:
    store = open_store(f"gs://{BUCKET}/lists")
    for name in ("cats/1.png", "dogs/1.png"):
        store.write(name, name.encode())
    store.write("pets.csv", b"path,label\ncats/1.png,cat\ndogs/1.png,dog\ndogs/2.png,dog\n")
    source = f"gs://{BUCKET}/lists/pets.csv"
    buckets = build_buckets(DataSpec(source=source), tmp_path / "cache", SilentProgress())
    items, rejections, *_ = read_layout(fetch(source, tmp_path / "cache"), "auto", buckets)
    assert [(item.name, item.label, item.read()) for item in items] == [
        (f"gs://{BUCKET}/lists/cats/1.png", "cat", b"cats/1.png"),
        (f"gs://{BUCKET}/lists/dogs/1.png", "dog", b"dogs/1.png"),
    ]
    missing = f"no such object: gs://{BUCKET}/lists/dogs/2.png"
    assert [(rejection.name, rejection.reason) for rejection in rejections] == [("pets.csv:4", missing)]


def test_import_file_with_a_missing_bucket_is_a_usage_error(
    server: BucketServer | OtherServer, tmp_path: Path
) -> None:
    (tmp_path / "import.csv").write_text("gs://no-such-bucket/1.png,cat\n")
    fetch_rows = build_buckets(DataSpec(), tmp_path / "cache", SilentProgress())
    with pytest.raises(UsageError, match="no-such-bucket"):
        read_layout(tmp_path / "import.csv", "auto", fetch_rows)


def test_weights_in_a_bucket_are_downloaded_and_missing_weights_are_an_error(
    server: BucketServer | OtherServer, tmp_path: Path
) -> None:
    open_store(f"gs://{BUCKET}/weights").write("a.weights.h5", b"arrays")
    spec = PretrainedSpec(weights=f"gs://{BUCKET}/weights/a.weights.h5")
    for _ in range(2):
        weights = find_weights(spec, tmp_path, SilentProgress())
        assert weights is not None
        assert (weights.path.read_bytes(), weights.origin) == (b"arrays", spec.weights)
        assert weights.sha256 == hashlib.sha256(b"arrays").hexdigest()
    missing = PretrainedSpec(weights=f"gs://{BUCKET}/weights/b.weights.h5")
    with pytest.raises(DataError, match=r"b\.weights\.h5"):
        find_weights(missing, tmp_path, SilentProgress())
