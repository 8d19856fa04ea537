from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_disk import small_disk

from trainer.exits import TemporaryError, UsageError
from trainer.storage import (
    append_line,
    build_once,
    create_bytes,
    exclusive,
    hash_file,
    is_temporary,
    prepare_folder,
    private_folder,
    write_bytes,
    write_json,
    write_text,
)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to write everywhere, where the tests have it."""
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
    """A folder that nobody can write."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    write_text(path, "a longer first version")
    write_text(path, "second")
    assert path.read_text() == "second"
    assert names(path.parent) == ["metrics.json"]


def test_written_files_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
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


def test_full_disk_leaves_a_log_with_its_whole_lines(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        path = disk / "history.jsonl"
        append_line(path, "first")
        with pytest.raises(TemporaryError, match="full"):
            append_line(path, "x" * 100_000)
        assert path.read_text() == "first\n"
        append_line(path, "second")
        assert path.read_text() == "first\nsecond\n"


def test_full_disk_stops_the_preparation_of_a_folder(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8k") as disk:
        (disk / "filler").write_bytes(b"x" * 8192)
        with pytest.raises(TemporaryError, match="full"):
            prepare_folder(disk / "a" / "b")
        assert names(disk) == ["filler"]


def test_read_only_disk_is_a_usage_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "ro") as disk, pytest.raises(UsageError, match="Read-only"):
        prepare_folder(disk)


def test_folder_without_the_right_to_write_is_a_usage_error(locked_folder: Path) -> None:
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
    with pytest.raises(UsageError, match=r"can't be written|not a path"):
        prepare_folder(tmp_path / below)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_prepared_folder_is_there_and_empty(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    prepare_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_append_ends_a_line_that_a_crash_tore(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 1}\n{"epo')
    append_line(path, '{"epoch": 2}')
    assert path.read_text().splitlines() == ['{"epoch": 1}', '{"epo', '{"epoch": 2}']


def test_append_refuses_two_lines_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="newline"):
        append_line(tmp_path / "history.jsonl", "a\nb")


def test_only_one_of_many_creates_a_file_and_it_is_whole(tmp_path: Path) -> None:
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


def test_readers_and_a_kill_find_the_old_file_or_the_new_never_a_part(tmp_path: Path) -> None:
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


def test_hash_is_that_of_the_bytes_and_every_chunk_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    told: list[int] = []
    digests = hash_file(tmp_path / "a", ["md5", "sha256"], told.append)
    assert digests["md5"] == "900150983cd24fb0d6963f7d28e17f72"
    assert digests["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sum(told) == 3


def test_second_process_waits_for_the_lock_and_says_so(tmp_path: Path) -> None:
    events: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with exclusive(tmp_path / "lock", waiting.set):
            events.append("second")

    with exclusive(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_folder_is_built_once_and_again_when_a_file_is_lost(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("abc")
        (folder / "b").write_text("b")

    folder = build_once(tmp_path / "cache" / "set", build)
    assert build_once(folder, build) == folder
    assert len(built) == 1
    (folder / "sub" / "a").write_text("ab")
    build_once(folder, build)
    assert (folder / "sub" / "a").read_text() == "abc"
    assert len(built) == 2


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "a").write_text("a")
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        build_once(tmp_path / "set", build)
    assert names(tmp_path) == [".set.lock"]


def test_build_cut_short_by_a_kill_is_not_taken_for_complete(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from trainer.storage import build_once\n"
        "def build(folder):\n"
        "    (folder / 'half').write_text('half'); print('half', flush=True); time.sleep(60)\n"
        "build_once(Path(sys.argv[1]) / 'set', build)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    child.kill()
    child.communicate()
    assert not (tmp_path / "set").exists()
    folder = build_once(tmp_path / "set", lambda folder: (folder / "whole").write_text("whole") and None)
    assert names(folder) == ["whole"]


def test_a_private_folder_is_nobody_elses_and_those_of_killed_processes_go(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from trainer.storage import private_folder\n"
        "with private_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'model').write_text('mine'); print(folder, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().strip())
    with private_folder(tmp_path) as ours:
        assert ours != theirs
        assert (theirs / "model").read_text() == "mine"
    assert not ours.exists()
    other.kill()
    other.communicate()
    with private_folder(tmp_path) as ours:
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == [ours]


def test_of_many_processes_at_once_none_takes_anothers_private_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.storage import private_folder\n"
        "for turn in range(60):\n"
        "    with private_folder(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'model').write_text('mine')\n"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=subprocess.PIPE) for _ in range(4)
    ]
    assert [racer.communicate()[1] for racer in racers] == [b""] * 4


def test_what_a_killed_build_left_goes_with_the_next_of_another_folder(tmp_path: Path) -> None:
    for name in ("left", "busy"):
        (tmp_path / f".{name}.partial").mkdir()
        (tmp_path / f".{name}.lock").touch()
    with exclusive(tmp_path / ".busy.lock"):
        build_once(tmp_path / "set", lambda folder: (folder / "whole").write_text("whole") and None)
        assert (tmp_path / ".busy.partial").exists()
    assert not (tmp_path / ".left.partial").exists()
