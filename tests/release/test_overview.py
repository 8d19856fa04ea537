"""The table of all runs: number of requests and contents."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, BucketServer, bucket_server

from trainer.data.progress import SilentProgress, Task
from trainer.release.overview import overview
from trainer.runs.publish import MANIFEST, MARKER, is_finished, publish, verify
from trainer.storage import open_store
from trainer.storage.store import Store


class Counted(SilentProgress):
    """Progress that records the total and the amount done."""

    total: int | None = None
    done = 0

    def start(self, label: str, total: int | None, unit: str) -> Task:
        self.total = total
        return self

    def advance(self, amount: int) -> None:
        self.done += amount

    def finish(self) -> None:
        """Do nothing."""


def publish_run(output: Store, folder: Path, name: str, accuracy: float) -> None:
    """Publish a run with only the small files that the table of runs reads."""
    (run := folder / name).mkdir(parents=True)
    for file, values in (
        ("dataset.json", {"digest": f"sha256:{name:0>64}"}),
        ("metrics.json", {"train/accuracy": 1.0, "validation/accuracy": accuracy}),
        ("spec.yaml", {"seed": 0}),
    ):
        (run / file).write_text(json.dumps(values))
        output.below(name).write(file, (run / file).read_bytes())
    publish(output, name, run)


def test_list_of_runs_needs_one_request_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server(page_size=20) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        output = open_store(f"gs://{BUCKET}/{tmp_path.name}")
        for number in range(40):
            publish_run(output, tmp_path, f"run-{number:02}", number / 100)
        output.write("releases/one.json", b"{}")
        asked, seen = server.asked, Counted()
        rows = overview(output, seen)
        if isinstance(server, BucketServer):
            assert server.asked - asked <= 50
    rows.sort(key=lambda row: row.name, reverse=True)
    assert [row.name for row in rows] == [f"run-{number:02}" for number in reversed(range(40))]
    assert (seen.total, seen.done) == (41, 41)
    assert (rows[0].state, rows[0].accuracy, rows[0].data) == ("finished", 0.39, "000000000000")
    assert [row.name for row in rows if row.is_latest] == ["run-39"]


def test_run_is_finished_for_an_earlier_version_only_with_its_marker(
    either_store: Store, tmp_path: Path
) -> None:
    publish_run(either_store, tmp_path, "new", 0.5)
    marker, manifest = (either_store.read(f"new/{name}") for name in (MARKER, MANIFEST))
    assert marker is not None
    assert manifest is not None
    assert marker.data.decode() == f"{hashlib.sha256(manifest.data).hexdigest()}\n"
    either_store.remove(f"new/{MARKER}")
    assert [(row.state, row.accuracy) for row in overview(either_store)] == [("unfinished", None)]


def test_table_is_equal_for_runs_published_by_an_earlier_version(either_store: Store, tmp_path: Path) -> None:
    publish_run(either_store, tmp_path, "new", 0.5)
    publish_run(either_store, tmp_path, "old", 0.25)
    either_store.write("begun/spec.yaml", b"{}")
    either_store.write("photos/cats/1.png", b"no run")
    rows = overview(either_store)
    marker = either_store.read(f"old/{MARKER}")
    assert marker is not None
    either_store.write(f"old/{MARKER}", marker.data)  # without the metadata that this version adds
    assert overview(either_store) == rows
    assert {(row.name, row.state, row.accuracy) for row in rows} == {
        ("old", "finished", 0.25), ("new", "finished", 0.5), ("begun", "unfinished", None),
    }  # fmt: skip
    assert all(is_finished(either_store.below(name)) for name in ("old", "new"))
    assert verify(either_store.below("new")) == []
    assert overview(either_store.below("nothing")) == []
