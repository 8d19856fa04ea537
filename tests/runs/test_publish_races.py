"""Publication while other processes write, pause or publish."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET
from helpers.unpublished_run import make_run, publish_at

from trainer.errors import TemporaryError
from trainer.runs.publish import is_finished, latest_run, publish, verify
from trainer.storage import open_store
from trainer.storage.folder import FolderStore


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_late_marker_is_removed_so_that_the_next_start_can_publish(run: Path) -> None:
    def arrive() -> None:
        if (run / "MANIFEST.json").exists():
            (run / "_SUCCESS").write_text("0" * 64)

    with pytest.raises(TemporaryError, match="Run the same command again"):
        publish(FolderStore(run.parent), run.name, run, arrive)
    publish_at(run)
    assert verify(FolderStore(run)) == []


def test_run_with_corrupted_upload_is_not_published(
    run: Path, tmp_path: Path, bucket_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    output = open_store(f"gs://{BUCKET}/{tmp_path.name}")
    for name in ("metrics.json", "report.html", "model/saved_model.pb", "model/variables/variables.index"):
        output.write(f"{run.name}/{name}", (run / name).read_bytes())
    output.write(f"{run.name}/metrics.json", b"[]\n")  # the same size as the local file
    with pytest.raises(TemporaryError, match=r"metrics\.json"):
        publish(output, run.name, run)
    assert not is_finished(output.below(run.name))
    output.write(f"{run.name}/metrics.json", (run / "metrics.json").read_bytes())
    publish(output, run.name, run)
    assert verify(output.below(run.name)) == []


def test_files_of_another_process_in_the_run_are_published_with_it(run: Path, tmp_path: Path) -> None:
    local = shutil.copytree(run, tmp_path / "local")
    (run / "step-7.npz").write_bytes(b"of a process that lost the run")
    publish(FolderStore(run.parent), run.name, local)
    assert verify(FolderStore(run)) == []
    assert "step-7.npz" in (run / "MANIFEST.json").read_text()


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_run_with_missing_uploads_is_not_published(run: Path, tmp_path: Path, damage: str) -> None:
    local = shutil.copytree(run, tmp_path / "local")
    if damage == "missing":
        (run / "metrics.json").unlink()
    else:
        (run / "metrics.json").write_bytes(b"{")
    with pytest.raises(TemporaryError, match=r"metrics\.json"):
        publish(FolderStore(run.parent), run.name, local)
    assert not is_finished(FolderStore(run))
    assert not (run.parent / "latest").exists()


def test_process_paused_while_another_published_changes_nothing(run: Path, tmp_path: Path) -> None:
    local = shutil.copytree(run, tmp_path / "local")
    (local / "metrics.json").write_text("[]\n")
    asked: list[int] = []

    def pause() -> None:
        asked.append(1)
        if len(asked) == 1:  # before the manifest is written
            publish_at(run)

    shutil.copytree(local, run, dirs_exist_ok=True)
    with pytest.raises(TemporaryError, match="Another process is publishing"):
        publish(FolderStore(run.parent), run.name, local, pause)
    assert verify(FolderStore(run)) == []
    assert latest_run(FolderStore(run.parent)) == run.name


def test_process_that_lost_the_lease_stops_publishing(run: Path) -> None:
    asked: list[int] = []

    def require() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise TemporaryError("lost")

    with pytest.raises(TemporaryError, match="lost"):
        publish(FolderStore(run.parent), run.name, run, require)
    assert not is_finished(FolderStore(run))
    assert not (run.parent / "latest").exists()
