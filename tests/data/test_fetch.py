from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.archives import FILES, make_zip, tree
from PIL import Image
from sklearn.datasets import load_digits

from trainer.data.fetch import DIGIT_NAMES, fetch_source
from trainer.data.progress import SilentProgress, SilentTask, Task
from trainer.errors import DataError, UsageError


class Labels(SilentProgress):
    """Progress that records the first word of each task label."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def start(self, label: str, total: int | None, unit: str) -> Task:
        self.labels.append(label.split()[0])
        return SilentTask()


def fetch(
    source: str | Path, cache: Path, checksum: str | None = None, progress: SilentProgress | None = None
) -> Path:
    return fetch_source(str(source), checksum, cache, 2**30, progress or SilentProgress())


# --- local sources


def test_folder_is_used_in_place_without_a_cache(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    assert fetch(tmp_path / "pets", tmp_path / "cache") == tmp_path / "pets"
    assert not (tmp_path / "cache").exists()


def test_file_that_is_not_an_archive_is_used_in_place(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    assert fetch(tmp_path / "labels.csv", tmp_path / "cache") == tmp_path / "labels.csv"


@pytest.mark.parametrize("prefix", ["", "file://", "FILE://localhost"])
def test_archive_source_is_extracted(tmp_path: Path, prefix: str) -> None:
    make_zip(tmp_path / "pets.zip", FILES)
    assert tree(fetch(f"{prefix}{tmp_path}/pets.zip", tmp_path / "cache")) == FILES


def test_file_url_is_percent_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "my gatos são 100%#?"
    folder.mkdir()
    url = f"file://{tmp_path}/my%20gatos%20s%C3%A3o%20100%25%23%3F"
    assert fetch(url, tmp_path / "cache") == folder


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pets").mkdir()
    assert fetch("~/pets", tmp_path / "cache") == tmp_path / "pets"


@pytest.mark.parametrize("source", ["missing", "missing.zip", "file.txt/below", "nul\0", "x" * 300])
def test_missing_source_is_a_data_error(tmp_path: Path, source: str) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(DataError, match=r"no such folder or file|cannot be read") as error:
        fetch(f"{tmp_path}/{source}", tmp_path / "cache")
    assert repr(source)[1:-1] in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a folder nor a regular file"):
        fetch(tmp_path / "pipe", tmp_path / "cache")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://example.org/a.zip", "require https"),
        (
            "ftp://ann:pw@example.org/a",
            r"^ftp:// is not supported\. Use a folder, .* gs:// URL\. Received: 'ftp://example.org",
        ),
        (
            "s3://KEY:pw@bucket/a",
            r"^s3:// is not supported\. .* `aws s3 presign`\. .*Received: 's3://bucket/a'",
        ),
        (
            "https:/example.org/a?t=pw",
            r"two slashes .*https://host/.*Received: 'https:/example.org/a\?\.\.\.'",
        ),
        ("FTP:a.zip", "two slashes"),
        ("gs:///a.zip", "gs://BUCKET/PREFIX"),
        ("https:///a.zip", "has no host"),
        ("https://[::1/a.zip", "not a valid URL"),
        ("https://exa mple.org/a.zip", "not a valid URL"),
        ("file://server/a.zip", "three slashes"),
        ("embedded:faces", r"Use embedded:digits\. Received: 'embedded:faces'"),
    ],
)
def test_unsupported_source_is_a_usage_error(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fetch(source, tmp_path / "cache")


# --- checksums


def test_local_archive_is_verified_and_not_deleted(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "pets.zip", FILES)
    right = hashlib.md5(archive.read_bytes()).hexdigest()
    assert tree(fetch(archive, tmp_path / "cache", f"md5:{right}")) == FILES
    wrong = "0" * 32
    with pytest.raises(DataError, match=f"wrong checksum.*Expected md5:{wrong}.*Received: md5:{right}"):
        fetch(archive, tmp_path / "cache", f"md5:{wrong}")
    assert archive.exists()


def test_checksum_of_a_folder_is_rejected(tmp_path: Path) -> None:
    for source in (str(tmp_path), "embedded:digits"):
        with pytest.raises(UsageError, match=r"Set data\.checksum to null"):
            fetch(source, tmp_path / "cache", f"md5:{'0' * 32}")


@pytest.mark.parametrize("checksum", ["md5:12", "sha1:" + "0" * 40, "0" * 32])
def test_invalid_checksum_is_a_usage_error(tmp_path: Path, checksum: str) -> None:
    with pytest.raises(UsageError, match="not a valid checksum"):
        fetch(tmp_path, tmp_path / "cache", checksum)


def test_archive_is_hashed_again_only_after_a_change(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "pets.zip", FILES)
    seen = []
    for _ in range(2):
        progress = Labels()
        fetch(archive, tmp_path / "cache", progress=progress)
        seen.append(progress.labels)
    times = archive.stat()
    changed = {name: data[::-1] for name, data in FILES.items()}
    make_zip(tmp_path / "pets.zip", changed)
    # Restoring the modification time does not hide the change.
    os.utime(archive, ns=(times.st_atime_ns, times.st_mtime_ns))
    progress = Labels()
    assert tree(fetch(archive, tmp_path / "cache", progress=progress)) == changed
    assert [*seen, progress.labels] == [["Verifying", "Extracting"], [], ["Verifying", "Extracting"]]


def test_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "pets.zip", FILES)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        fetch(archive, tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "a file"


# --- embedded


def test_embedded_digits_are_the_1797_images_in_ten_folders(tmp_path: Path) -> None:
    folder = fetch("embedded:digits", tmp_path)
    images, labels = load_digits(return_X_y=True)
    paths = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
    assert folder.name == "digits"
    assert [path.name for path in paths] == [f"{number:04d}.png" for number in range(1797)]
    assert [path.parent.name for path in paths] == [DIGIT_NAMES[label] for label in labels]
    for path, image in zip(paths[::100], images[::100], strict=True):
        with Image.open(path) as opened:
            pixels = np.asarray(opened)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, np.rint(image.reshape(8, 8) * 255 / 16))


def test_embedded_digits_are_written_again_only_if_one_is_missing(tmp_path: Path) -> None:
    folder = fetch("embedded:digits", tmp_path)
    one = next(folder.glob("*/*.png"))
    before = one.stat().st_ino
    fetch("embedded:digits", tmp_path)
    assert one.stat().st_ino == before
    one.unlink()
    fetch("embedded:digits", tmp_path)
    assert one.exists()
