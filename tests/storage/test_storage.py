"""Atomic writes to local disk, and the errors of files that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.listing import names
from helpers.small_disk import small_disk

from trainer.errors import TemporaryError, UsageError
from trainer.storage import (
    append_line,
    create_bytes,
    hash_file,
    is_temporary,
    prepare_folder,
    write_bytes,
    write_json,
    write_text,
)
from trainer.storage.temporary import temporary_folder, temporary_parent


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root privileges for the block, if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[Path]:
    """A read-only folder."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    write_text(path, "a longer first version")
    write_text(path, "second")
    assert path.read_text() == "second"
    assert names(path.parent) == ["metrics.json"]


def test_written_files_have_the_default_permissions(tmp_path: Path) -> None:
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_json_keeps_order_and_turns_nan_and_numpy_into_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(
        path, {"z": float("nan"), "a": np.float32(0.5), 3: (np.int64(2), np.inf), "m": np.eye(2, dtype=bool)}
    )
    assert json.loads(path.read_text()) == {
        "z": None,
        "a": 0.5,
        "3": [2, None],
        "m": [[True, False], [False, True]],
    }
    assert list(json.loads(path.read_text())) == ["z", "a", "3", "m"]
    assert path.read_text().endswith("}\n")


def test_full_disk_is_temporary_and_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        path = disk / "model"
        write_bytes(path, b"old")
        with pytest.raises(TemporaryError, match=r"The disk is full: .*model could not be written"):
            write_bytes(path, b"x" * 100_000)
        assert path.read_bytes() == b"old"
        assert names(disk) == ["model"]


def test_full_disk_leaves_complete_lines_in_a_log(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        path = disk / "history.jsonl"
        append_line(path, "first")
        with pytest.raises(TemporaryError, match="full"):
            append_line(path, "x" * 100_000)
        assert path.read_text() == "first\n"
        append_line(path, "second")
        assert path.read_text() == "first\nsecond\n"


def test_full_disk_fails_the_preparation_of_a_folder(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8k") as disk:
        (disk / "filler").write_bytes(b"x" * 8192)
        with pytest.raises(TemporaryError, match="full"):
            prepare_folder(disk / "a" / "b")
        assert names(disk) == ["filler"]


def test_full_disk_of_temporary_files_is_distinguished_from_another_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = tempfile.gettempdir()
    with small_disk(tmp_path / "disk", "size=16k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        (disk / "filler").write_bytes(b"x" * 12_000)
        named = rf"{disk}\. Free some space there, or set TMPDIR"
        with pytest.raises(TemporaryError, match=named), temporary_folder() as folder:
            write_bytes(folder / "large", b"x" * 20_000)
        monkeypatch.setattr(tempfile, "tempdir", usual)
        with pytest.raises(TemporaryError, match="large could not be written"), temporary_folder():
            write_bytes(disk / "large", b"x" * 20_000)
        (disk / "more").write_bytes(b"x" * 4096)
        assert list(tmp_path.iterdir()) == [disk]
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(disk), "/nowhere"])
        with pytest.raises(TemporaryError, match=rf"full: {disk}\. "):
            temporary_parent()
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
        with pytest.raises(UsageError, match=r"Set TMPDIR to a writable folder\. Received: /nowhere"):
            temporary_parent()


def test_read_only_disk_is_a_usage_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "ro") as disk, pytest.raises(UsageError, match="Read-only"):
        prepare_folder(disk)


def test_folder_without_write_permission_is_a_usage_error(locked_folder: Path) -> None:
    with as_nobody():
        with pytest.raises(UsageError, match="Permission denied"):
            prepare_folder(locked_folder)
        with pytest.raises(UsageError, match="Permission denied"):
            write_text(locked_folder / "a.txt", "a")
        with pytest.raises(UsageError, match="Permission denied"):
            append_line(locked_folder / "a.txt", "a")
    assert names(locked_folder) == []


@pytest.mark.parametrize("below", ["file", "file/below", "bad\0name", "x" * 300])
def test_path_that_cannot_be_a_folder_is_a_usage_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match=r"cannot be written|not a path") as raised:
        prepare_folder(tmp_path / below)
    assert ("A file has the name of a folder" in str(raised.value)) == below.startswith("file")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_prepared_folder_exists_and_is_empty(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    prepare_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_append_terminates_the_incomplete_line_of_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 1}\n{"epo')
    append_line(path, '{"epoch": 2}')
    assert path.read_text().splitlines() == ['{"epoch": 1}', '{"epo', '{"epoch": 2}']


def test_append_refuses_more_than_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="newline"):
        append_line(tmp_path / "history.jsonl", "a\nb")


def test_one_of_many_processes_creates_a_file_and_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "_SUCCESS"
    made: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        if create_bytes(path, str(number).encode() * 5000):
            made.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert path.read_bytes() == str(made[0]).encode() * 5000
    assert names(tmp_path) == ["_SUCCESS"]


def test_readers_see_the_old_or_the_new_file_even_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "big"
    write_bytes(path, b"0" * 3_000_000)
    code = (
        "import sys, itertools; from pathlib import Path; from trainer.storage import write_bytes\n"
        "for n in itertools.count(1):\n"
        "    write_bytes(Path(sys.argv[1]), str(n % 10).encode() * 3_000_000); print(n, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    seen = [path.read_bytes() for _ in range(50)]
    child.kill()
    child.communicate()
    for data in [*seen, path.read_bytes()]:
        assert len(data) == 3_000_000
        assert data == data[:1] * len(data)
    assert all(is_temporary(tmp_path / name) for name in names(tmp_path) if name != "big")


def test_hash_covers_all_bytes_and_every_chunk_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    told: list[int] = []
    digests = hash_file(tmp_path / "a", ["md5", "sha256"], told.append)
    assert digests["md5"] == "900150983cd24fb0d6963f7d28e17f72"
    assert digests["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sum(told) == 3
