from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from trainer.exits import UsageError
from trainer.publish import is_finished, is_pointer_older, latest_run, publish, verify


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "pets-1"
    (folder / "model" / "variables").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}\n")
    (folder / "report.html").write_text("<html>")
    (folder / "model" / "saved_model.pb").write_bytes(b"graph")
    (folder / "model" / "variables" / "variables.index").write_bytes(b"")
    (folder / ".history.jsonl.0a1b2c.tmp").write_bytes(b"half-writ")
    return folder


def test_manifest_lists_every_file_but_itself_the_marker_and_temporary_ones(run: Path) -> None:
    publish(run)
    manifest = json.loads((run / "MANIFEST.json").read_text())
    assert manifest["schema"] == 1
    assert manifest["run"] == "pets-1"
    assert [record["path"] for record in manifest["files"]] == [
        "metrics.json",
        "model/saved_model.pb",
        "model/variables/variables.index",
        "report.html",
    ]
    assert manifest["files"][1] == {
        "path": "model/saved_model.pb",
        "size": 5,
        "sha256": hashlib.sha256(b"graph").hexdigest(),
    }


def test_marker_holds_the_digest_of_the_manifest_and_the_pointer_the_name(run: Path) -> None:
    pointer = publish(run)
    assert (run / "_SUCCESS").read_text().strip() == hashlib.sha256(
        (run / "MANIFEST.json").read_bytes()
    ).hexdigest()
    assert pointer == run.parent / "latest"
    assert pointer.read_text() == "pets-1\n"
    assert latest_run(run.parent) == run
    assert verify(run) == []


def test_run_without_marker_or_with_another_manifest_is_not_finished(run: Path) -> None:
    assert not is_finished(run)
    publish(run)
    assert is_finished(run)
    (run / "MANIFEST.json").write_text('{"schema": 1, "files": []}\n')
    assert not is_finished(run)
    (run / "_SUCCESS").unlink()
    assert not is_finished(run)


def test_publication_cut_short_before_the_marker_is_made_anew(run: Path) -> None:
    (run / "MANIFEST.json").write_text("of an earlier try")
    (run / "late.txt").write_text("late")
    publish(run)
    assert verify(run) == []


def test_publication_cut_short_before_the_pointer_only_moves_the_pointer(run: Path) -> None:
    publish(run)
    (run.parent / "latest").write_text("pets-0\n")
    before = (run / "MANIFEST.json").stat().st_ino, (run / "_SUCCESS").stat().st_ino
    publish(run)
    assert (run.parent / "latest").read_text() == "pets-1\n"
    assert ((run / "MANIFEST.json").stat().st_ino, (run / "_SUCCESS").stat().st_ino) == before


def test_a_pointer_that_a_crash_left_behind_is_told_from_one_that_moved_on(run: Path) -> None:
    assert is_pointer_older(run)
    pointer = publish(run)
    assert not is_pointer_older(run)
    published = (run / "_SUCCESS").stat().st_mtime_ns
    os.utime(pointer, ns=(published - 1, published - 1))
    assert is_pointer_older(run)


def test_marker_of_another_manifest_is_never_replaced(run: Path) -> None:
    (run / "_SUCCESS").write_text("0" * 64)
    with pytest.raises(UsageError, match="doesn't belong to its"):
        publish(run)
    assert (run / "_SUCCESS").read_text() == "0" * 64
    assert not (run / "MANIFEST.json").exists()
    assert not (run.parent / "latest").exists()


def test_failed_publication_leaves_the_pointer_where_it_was(run: Path) -> None:
    (run.parent / "latest").write_text("pets-0\n")
    os.symlink("nowhere", run / "dangling")
    with pytest.raises(UsageError, match="dangling can't be read"):
        publish(run)
    assert (run.parent / "latest").read_text() == "pets-0\n"
    assert not is_finished(run)


def test_run_called_like_the_pointer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(UsageError, match="name of the pointer"):
        publish(tmp_path / "latest")
    assert list((tmp_path / "latest").iterdir()) == []


def test_verify_names_every_kind_of_damage(run: Path) -> None:
    (run / "other").write_text("same size")
    publish(run)
    (run / "metrics.json").unlink()
    (run / "extra").write_text("extra")
    (run / "model" / "saved_model.pb").write_bytes(b"longer graph")
    (run / "other").write_text("SAME SIZE")
    assert verify(run) == [
        "metrics.json is missing",
        "extra is not in MANIFEST.json",
        "model/saved_model.pb has 12 bytes instead of 5",
        "other has other contents than were published",
    ]


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", '{"schema": 2, "files": []}', '{"schema": 1, "files": [{}]}']
)
def test_verify_says_that_a_manifest_cannot_be_read(run: Path, text: str) -> None:
    publish(run)
    (run / "MANIFEST.json").write_text(text)
    problems = verify(run)
    assert len(problems) == 1
    assert problems[0].startswith("MANIFEST.json can't be read")


@pytest.mark.parametrize("text", ["", "gone\n", "../elsewhere\n", "/\n", "..\n"])
def test_pointer_that_names_no_run_is_no_run(run: Path, text: str) -> None:
    (run.parent / "latest").write_text(text)
    assert latest_run(run.parent) is None
