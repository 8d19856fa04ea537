"""Run folder that is ready to be published."""

from __future__ import annotations

from pathlib import Path

from trainer.runs.publish import publish
from trainer.storage.folder import FolderStore


def make_run(parent: Path) -> Path:
    """Return a run folder in its state after training, including temporary files."""
    folder = parent / "runs" / "pets-1"
    (folder / "model" / "variables").mkdir(parents=True)
    (folder / "metrics.json").write_text("{}\n")
    (folder / "report.html").write_text("<html>")
    (folder / "model" / "saved_model.pb").write_bytes(b"graph")
    (folder / "model" / "variables" / "variables.index").write_bytes(b"")
    (folder / ".history.jsonl.0a1b2c.tmp").write_bytes(b"half-writ")
    (folder / ".model.tmp").mkdir()
    (folder / ".model.tmp" / "saved_model.pb").write_bytes(b"half a model")
    return folder


def publish_at(run: Path) -> None:
    publish(FolderStore(run.parent), run.name, run)
