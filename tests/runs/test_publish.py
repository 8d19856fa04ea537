"""Publication of a run: manifest, marker and pointer, in this order, and verification."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest
from helpers.unpublished_run import make_run, publish_at

from trainer.errors import UsageError
from trainer.runs.publish import is_finished, latest_run, move_pointer, publication_order, publish, verify
from trainer.storage.folder import FolderStore


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_manifest_lists_all_files_except_manifest_marker_and_temporary_files(run: Path) -> None:
    publish_at(run)
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


def test_marker_contains_the_manifest_digest_and_pointer_the_run_name(run: Path) -> None:
    publish_at(run)
    digest = hashlib.sha256((run / "MANIFEST.json").read_bytes()).hexdigest()
    assert (run / "_SUCCESS").read_text().strip() == digest
    assert (run.parent / "latest").read_text() == "pets-1\n"
    assert latest_run(FolderStore(run.parent)) == run.name
    assert verify(FolderStore(run)) == []


def test_run_without_marker_or_with_another_manifest_is_not_finished(run: Path) -> None:
    assert not is_finished(FolderStore(run))
    publish_at(run)
    assert is_finished(FolderStore(run))
    (run / "MANIFEST.json").write_text('{"schema": 1, "files": []}\n')
    assert not is_finished(FolderStore(run))
    (run / "_SUCCESS").unlink()
    assert not is_finished(FolderStore(run))


def test_publication_interrupted_before_the_marker_is_repeated(run: Path) -> None:
    (run / "MANIFEST.json").write_text("of an earlier try")
    (run / "late.txt").write_text("late")
    publish_at(run)
    assert verify(FolderStore(run)) == []


def test_publication_interrupted_repeatedly_before_the_marker_completes(run: Path) -> None:
    class KilledError(Exception):
        """Simulated end of the process."""

    for _ in range(3):
        asked = []

        def cut_after_the_manifest(asked: list[int] = asked) -> None:
            asked.append(1)
            if len(asked) == 2:
                raise KilledError

        with pytest.raises(KilledError):
            publish(FolderStore(run.parent), run.name, run, cut_after_the_manifest)
        assert (run / "MANIFEST.json").exists()
        assert not is_finished(FolderStore(run))
    publish_at(run)
    assert verify(FolderStore(run)) == []
    assert {path.name for path in run.iterdir()} - {".history.jsonl.0a1b2c.tmp", ".model.tmp"} == {
        "MANIFEST.json", "_SUCCESS", "metrics.json", "model", "report.html",
    }  # fmt: skip


@pytest.mark.parametrize("left", ["", "0" * 64], ids=["empty", "of no manifest"])
def test_stray_marker_is_replaced(run: Path, left: str) -> None:
    (run / "_SUCCESS").write_text(left)
    if not left:  # without atomic creation, a crash leaves an empty marker beside a manifest
        (run / "MANIFEST.json").write_text("of an earlier try")
    publish_at(run)
    assert verify(FolderStore(run)) == []


def test_publication_killed_after_removing_a_stray_marker_can_be_repeated(run: Path) -> None:
    (run / "_SUCCESS").write_text("0" * 64)

    def kill() -> None:
        if (run / "MANIFEST.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(FolderStore(run.parent), run.name, run, kill)
    publish_at(run)
    assert verify(FolderStore(run)) == []


def test_publication_interrupted_before_the_pointer_only_moves_the_pointer(run: Path) -> None:
    publish_at(run)
    (run.parent / "latest").write_text("pets-0\n")
    before = (run / "MANIFEST.json").stat().st_ino, (run / "_SUCCESS").stat().st_ino
    publish_at(run)
    assert (run.parent / "latest").read_text() == "pets-1\n"
    assert ((run / "MANIFEST.json").stat().st_ino, (run / "_SUCCESS").stat().st_ino) == before


def test_pointer_moves_to_the_last_published_run_and_never_back(run: Path) -> None:
    output = FolderStore(run.parent)
    publish_at(run)
    newer = run.with_name("pets-2")
    newer.mkdir()
    (newer / "metrics.json").write_text("{}")
    publish_at(newer)
    assert latest_run(output) == "pets-2"
    move_pointer(output, "pets-1")
    assert latest_run(output) == "pets-2"
    # A pointer that a crash left at an older, deleted or invalid run moves forward.
    for text in ("pets-1\n", "pets-0\n", "../x\n", ""):
        (run.parent / "latest").write_text(text)
        move_pointer(output, "pets-2")
        assert latest_run(output) == "pets-2"


def test_marker_of_another_manifest_is_never_replaced(run: Path) -> None:
    (run / "_SUCCESS").write_text("0" * 64)
    (run / "MANIFEST.json").write_text("another")
    with pytest.raises(UsageError, match="doesn't match its"):
        publish_at(run)
    assert (run / "_SUCCESS").read_text() == "0" * 64
    assert (run / "MANIFEST.json").read_text() == "another"
    assert not (run.parent / "latest").exists()


def test_failed_publication_does_not_move_the_pointer(run: Path) -> None:
    (run.parent / "latest").write_text("pets-0\n")
    os.symlink("nowhere", run / "dangling")
    with pytest.raises(UsageError, match="dangling cannot be read"):
        publish_at(run)
    assert (run.parent / "latest").read_text() == "pets-0\n"
    assert not is_finished(FolderStore(run))


def test_run_named_like_the_pointer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(UsageError, match="name of the pointer"):
        publish_at(tmp_path / "latest")
    assert list((tmp_path / "latest").iterdir()) == []


def test_verify_reports_every_kind_of_damage(run: Path) -> None:
    (run / "other").write_text("same size")
    publish_at(run)
    (run / "metrics.json").unlink()
    (run / "extra").write_text("extra")
    (run / "model" / "saved_model.pb").write_bytes(b"longer graph")
    (run / "other").write_text("SAME SIZE")
    assert verify(FolderStore(run)) == [
        "metrics.json is missing",
        "extra is not in MANIFEST.json",
        "model/saved_model.pb has 12 bytes instead of 5",
        "other has other contents than the published file",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        '{"schema": 2, "files": []}',
        '{"schema": 1, "files": [{}]}',
        '{"schema": 1, "files": [{"path": "spec.yaml", "size": "a", "sha256": "0"}]}',
        '{"schema": 1, "files": [{"path": 3, "size": 1, "sha256": "0"}]}',
        "[" * 100_000,
    ],
)
def test_verify_reports_an_unreadable_manifest(run: Path, text: str) -> None:
    publish_at(run)
    (run / "MANIFEST.json").write_text(text)
    problems = verify(FolderStore(run))
    assert len(problems) == 1
    assert problems[0].startswith("MANIFEST.json cannot be read")


@pytest.mark.parametrize("text", ["", "gone\n", "../elsewhere\n", "/\n", "..\n", "\0\0\0", "x" * 300])
def test_pointer_with_invalid_content_names_no_run(run: Path, text: str) -> None:
    (run.parent / "latest").write_text(text)
    assert latest_run(FolderStore(run.parent)) is None


def rewrite_manifest(run: Path, **changes: object) -> None:
    """Change the manifest of a finished run, and update its marker; None removes a key."""
    manifest = json.loads((run / "MANIFEST.json").read_text()) | changes
    text = json.dumps({key: value for key, value in manifest.items() if value is not None})
    (run / "MANIFEST.json").write_text(text)
    (run / "_SUCCESS").write_text(hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("has_sequence", [True, False], ids=["of this version", "of an older version"])
def test_run_dated_in_the_future_does_not_keep_the_pointer(run: Path, has_sequence: bool) -> None:
    output = FolderStore(run.parent)
    ahead = shutil.copytree(run, run.with_name("pets-2"))
    publish_at(ahead)
    future = datetime(2099, 1, 1, tzinfo=timezone.utc)
    sequence = {} if has_sequence else {"sequence": None}
    rewrite_manifest(ahead, published=future.isoformat(), **sequence)
    os.utime(ahead / "MANIFEST.json", (future.timestamp(),) * 2)
    publish_at(run)
    assert latest_run(output) == run.name
    third = shutil.copytree(run, run.with_name("pets-3"))
    for name in ("MANIFEST.json", "_SUCCESS"):
        (third / name).unlink()
    assert publish(output, third.name, third) == third.name
    assert latest_run(output) == third.name
    order = sorted((ahead.name, run.name, third.name), key=lambda name: publication_order(output, name))
    assert order == [ahead.name, run.name, third.name]
    # Neither call moves it back; both return the run that it names.
    assert [move_pointer(output, name) for name in (run.name, ahead.name)] == [third.name] * 2
    assert latest_run(output) == third.name
