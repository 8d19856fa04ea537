"""Locks, folders built once for several processes, and private folders."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers.listing import names

from trainer.storage import build_once, exclusive, private_folder


def test_second_process_waits_for_the_lock_and_reports_it(tmp_path: Path) -> None:
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


def test_build_ended_by_a_kill_does_not_count_as_complete(tmp_path: Path) -> None:
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


def test_private_folder_is_exclusive_and_those_of_killed_processes_are_removed(tmp_path: Path) -> None:
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


def test_concurrent_processes_keep_their_private_folders(tmp_path: Path) -> None:
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


def test_leftover_of_a_killed_build_is_removed_by_the_next_build(tmp_path: Path) -> None:
    for name in ("left", "busy"):
        (tmp_path / f".{name}.partial").mkdir()
        (tmp_path / f".{name}.lock").touch()
    with exclusive(tmp_path / ".busy.lock"):
        build_once(tmp_path / "set", lambda folder: (folder / "whole").write_text("whole") and None)
        assert (tmp_path / ".busy.partial").exists()
    assert not (tmp_path / ".left.partial").exists()
