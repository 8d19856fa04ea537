from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from helpers.archives import FILES, MAKERS, MIB, extract, left_behind, make_tar, make_zip, tree
from helpers.small_disk import small_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.archive import archive_kind
from trainer.errors import DataError, TemporaryError


@pytest.mark.parametrize("kind", MAKERS)
def test_archive_is_extracted_to_a_folder_named_by_its_digest(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path)
    folder = extract(archive, tmp_path / "cache")
    assert folder == tmp_path / "cache" / "extracted" / hashlib.sha256(archive.read_bytes()).hexdigest()
    assert tree(folder) == FILES


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archive_format_is_detected_from_the_bytes_not_the_name(tmp_path: Path, kind: str) -> None:
    renamed = MAKERS[kind](tmp_path).rename(tmp_path / "download")
    assert archive_kind(renamed) == {"tar.gz": "gzip"}.get(kind, kind)
    assert tree(extract(renamed, tmp_path / "cache")) == FILES


@pytest.mark.parametrize(("name", "data"), [("a.csv", b"a,b"), ("a.bin", bytes(3073)), ("a.jsonl", b"")])
def test_other_files_are_not_archives(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert archive_kind(tmp_path / name) is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.zip", b"GIF89a, no zip", "is not an archive: it starts with b'GIF89a, no zip'"),
        ("a.zip", b"\xef\xbb\xbf\n<!DOCTYPE html>", "is not an archive: it is a web page"),
        ("a.tgz", b"<html><head>", "is not an archive: it is a web page"),
        ("a.tar", b"", "is not an archive: it is empty"),
        ("a.tar.bz2", b"BZh91AY", "Archives of the format bzip2 are not supported"),
        ("a", b"7z\xbc\xaf\x27\x1c", "Archives of the format 7z are not supported"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0), "single compressed file"),
    ],
)
def test_unsupported_archives_and_files_with_an_archive_extension_are_rejected(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        archive_kind(tmp_path / name)


def test_second_extraction_does_not_read_the_archive_again(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", FILES)
    folder = extract(archive, tmp_path / "cache")
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert extract(archive, tmp_path / "cache") == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


@pytest.mark.parametrize("kind", MAKERS)
def test_archive_truncated_anywhere_is_rejected(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path)
    whole = archive.read_bytes()
    # A tar ends with blocks of zeros; all but the first are padding.
    needed = len(whole.rstrip(b"\0")) if "tar" in kind and kind != "tar.gz" else len(whole)
    cuts = [*range(512, needed, 512), needed // 2, needed - 1] if needed > 512 else range(1, needed)
    for cut in cuts:
        archive.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cannot be read|is not an archive"):
            extract(archive, tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_flipped_bit_is_detected_by_the_checksum_of_the_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat.png", b"c" * 100)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"c" * 100, b"c" * 99 + b"b"))
    with pytest.raises(DataError, match=r"member 'cat.png' is damaged or incomplete \(Bad CRC-32"):
        extract(tmp_path / "a.zip", tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == []


def test_damaged_header_in_the_middle_of_a_tar_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", {"a": b"a", "b": b"b", "c": b"c"})
    data = bytearray(archive.read_bytes())
    data[1024] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="bad checksum"):
        extract(archive, tmp_path / "cache")


def test_tar_without_an_end_marker_is_rejected(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", {"a": b"a" * 512, "b": b"b" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    with pytest.raises(DataError, match="no end marker"):
        extract(archive, tmp_path / "cache")


def test_gzip_checksum_after_the_end_of_the_tar_is_verified(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tgz", FILES, "w:gz")
    data = bytearray(archive.read_bytes())
    data[-6] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        extract(archive, tmp_path / "cache")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["zip", "tar", "tar.gz"]), st.integers(0, 2**32))
def test_any_damage_is_a_data_error_or_harmless(kind: str, seed: int) -> None:
    """Raise only `DataError`, write only to the cache, and leave nothing of a rejected archive."""
    with tempfile.TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(seed)
        archive = MAKERS[kind](folder)
        data = bytearray(archive.read_bytes())
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        archive.write_bytes(data)
        try:
            extract(archive, folder / "cache")
        except DataError:
            assert left_behind(folder / "cache") == []
        assert {path.name for path in folder.iterdir()} <= {archive.name, "cache"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_full_disk_during_extraction_is_temporary_and_leaves_no_files(tmp_path: Path, kind: str) -> None:
    files = {"small": b"x", "large": random.Random(0).randbytes(MIB)}
    archive = make_zip(tmp_path / "a", files) if kind == "zip" else make_tar(tmp_path / "a", files)
    with small_disk(tmp_path / "disk", "size=512k") as disk:
        with pytest.raises(TemporaryError, match="The disk is full"):
            extract(archive, disk)
        assert left_behind(disk) == []


def test_process_killed_during_extraction_leaves_no_complete_folder(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {**FILES, **{f"{n}": b"x" * 1000 for n in range(3000)}})
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    code = (
        "import sys, time; from pathlib import Path\n"
        "from trainer.data.archive import extract_archive; from trainer.data.progress import SilentProgress\n"
        "class Slow(SilentProgress):\n"
        "    def start(self, *a): return self\n"
        "    def advance(self, n): print(n, flush=True); time.sleep(0.01)\n"
        "    def finish(self): pass\n"
        "extract_archive(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), 2**30, Slow())"
    )
    command = [sys.executable, "-c", code, str(archive), sha256, str(tmp_path / "cache")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout
    for _ in range(5):
        child.stdout.readline()
    child.kill()
    child.communicate()
    assert not (tmp_path / "cache" / "extracted" / sha256).exists()
    folder = extract(archive, tmp_path / "cache")
    assert len(tree(folder)) == 3003
    assert [path.name for path in folder.parent.iterdir() if "partial" in path.name] == []
