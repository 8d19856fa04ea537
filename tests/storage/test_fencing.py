"""Write fencing: a process without the lease cannot change the run folder, whatever the write method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.listing import names

from trainer.errors import TemporaryError
from trainer.storage.folder import FolderStore
from trainer.storage.local import append_line, create_bytes, guarded, replace_folder, write_text
from trainer.training.history import EventLog


def lost() -> None:
    raise TemporaryError("another process has it")


def upload(path: Path) -> None:
    (source := path.parent.parent / "source").write_text("mine")
    FolderStore(path.parent).upload(source, path.name)


def replace(path: Path) -> None:
    (new := path.parent.parent / "new").mkdir()
    replace_folder(new, path.with_name("model"))


WAYS: dict[str, Callable[[Path], object]] = {
    "write": lambda path: write_text(path, "mine"),
    "create": lambda path: create_bytes(path.with_name("new"), b"mine"),
    "append": lambda path: append_line(path, "mine"),
    "upload": upload,
    "swap": lambda path: FolderStore(path.parent.parent).swap("run/new", b"mine", None),
    "replace": replace,
    "event": lambda path: EventLog(path.with_name("events")).add({"epoch": 1, "loss": 0.5}),
    "replayed events": lambda path: EventLog(path.with_name("events")).replay([]),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_written_below_a_folder_without_its_lease(way: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "events").mkdir()
    kept = ("report.html", "model/saved_model.pb", "events/events.out.tfevents.1")
    for name in kept:
        (run / name).write_text("theirs")
    with guarded(run, lost), pytest.raises(TemporaryError, match="another process"):
        WAYS[way](run / "report.html")
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert found == set(kept)
    assert all((run / name).read_text() == "theirs" for name in kept)
    WAYS["write"](run / "report.html")  # the fence ends with its block
    assert (run / "report.html").read_text() == "mine"


def test_paths_outside_the_guarded_folder_are_writable(tmp_path: Path) -> None:
    with guarded(tmp_path / "run", lost):
        write_text(tmp_path / "run-2" / "report.html", "mine")
    assert names(tmp_path / "run-2") == ["report.html"]
