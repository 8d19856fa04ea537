"""The run folder: selection by spec, on disk and in a bucket, and refused folders."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from trainer.data.progress import SilentProgress
from trainer.errors import DivergedError, TemporaryError, UsageError
from trainer.runs import (
    RunFolder,
    Start,
    count_start,
    find_same_run,
    forget_start,
    open_run_folder,
    require_same_start,
)
from trainer.runs.publish import publish
from trainer.spec import RunSpec, dump_spec, load_spec, parse_spec, read_spec
from trainer.storage import open_store
from trainer.storage.local import write_json, write_text
from trainer.storage.store import Store

NOW = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def output(either_store: Store) -> Store:
    return either_store


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Listener(SilentProgress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_message(self, message: str) -> None:
        self.heard.append(message)


def spec_in(output: Store | Path, *settings: str, name: str | None = "one") -> RunSpec:
    place = str(output) if isinstance(output, Path) else output.uri
    return load_spec(recipe="demo", settings=settings, overrides={"output": place, "run_name": name})


def begun(output: Store, cache: Path) -> None:
    """Start a run, write a checkpoint and release the lease."""
    run = open_run_folder(spec_in(output), NOW, cache)
    count_start(run.path, "", 5)
    write_text(run.checkpoints / "step-00000007.npz", "state")
    run.keep()
    run.release()


def finish(output: Store, cache: Path) -> None:
    """Start, publish and release a run."""
    begun(output, cache)
    run = open_run_folder(spec_in(output), NOW, cache)
    run.keep()
    publish(output, "one", run.path)
    run.release()


def written_spec(output: Store) -> RunSpec:
    found = output.read("one/spec.yaml")
    assert found is not None
    return parse_spec(found.data.decode(), "spec.yaml")


def test_new_run_is_named_after_recipe_time_and_spec_and_resumes_from_its_spec_file(
    output: Store, cache: Path
) -> None:
    run = open_run_folder(spec_in(output, name=None), NOW, cache)
    assert run.name.startswith("demo-20260102-030405-")
    run.keep()
    found = output.read(f"{run.name}/spec.yaml")
    assert found is not None
    run.release()
    again = open_run_folder(parse_spec(found.data.decode(), "it"), datetime(2027, 1, 1), cache)
    assert again.at("") == run.at("") == f"{output.uri}/{run.name}"
    again.release()


def test_run_resumes_from_its_spec_file_in_any_working_directory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = open_run_folder(spec_in(Path("runs")), NOW, cache)
    written = (tmp_path / run.path / "spec.yaml").absolute()
    run.release()
    monkeypatch.chdir("elsewhere")
    again = open_run_folder(read_spec(written), NOW, cache)
    assert again.path == tmp_path / "runs" / "one"
    again.release()


def test_started_run_resumes_and_refuses_another_spec_with_the_changed_keys(
    output: Store, cache: Path
) -> None:
    begun(output, cache)
    with pytest.raises(UsageError, match=r"train\.epochs: 15 -> 3"):
        open_run_folder(spec_in(output, "train.epochs=3"), NOW, cache)
    assert written_spec(output).train.epochs == 15
    # Settings without effect on the result may change; so may the source, whose contents are compared later.
    moved = ("data.cache_mib=1", "train.checkpoint.every_steps=5", "data.source=/elsewhere")
    run = open_run_folder(spec_in(output, *moved), NOW, cache)
    assert run.newest_checkpoint == "step-00000007.npz"
    assert (run.checkpoints / "step-00000007.npz").read_text() == "state"
    run.release()


@pytest.mark.parametrize("finished", [False, True])
def test_run_without_its_spec_is_refused(output: Store, cache: Path, finished: bool) -> None:
    finish(output, cache) if finished else begun(output, cache)
    output.remove("one/spec.yaml")
    for damage, words in ((None, "is missing"), (b"", "is empty"), (b"a: [", "one/spec.yaml")):
        if damage is not None:
            output.write("one/spec.yaml", damage)
        with pytest.raises(UsageError, match=words) as caught:
            open_run_folder(spec_in(output), NOW, cache)
        assert f"{output.uri}/one/spec.yaml" in str(caught.value)
        assert ("--fresh" in str(caught.value)) == (not finished and damage != b"a: [")
    assert output.find("one/checkpoints/step-00000007.npz") is not None


def test_process_that_lost_the_lease_writes_nothing(tmp_path: Path, cache: Path) -> None:
    run = open_run_folder(spec_in(tmp_path), NOW, cache)
    before = (run.path / "spec.yaml").read_text()
    (tmp_path / ".one.lease").write_text('{"host": "elsewhere", "pid": 7}')
    assert run.lease is not None
    run.lease._beat_at -= 3600.0  # as after a pause
    with pytest.raises(TemporaryError, match="has taken over this run"):
        write_text(run.path / "spec.yaml", "mine")
    assert (run.path / "spec.yaml").read_text() == before
    run.release()


@pytest.mark.parametrize("below", ["", "/plots/more"])
@pytest.mark.parametrize("finished", [False, True])
def test_run_inside_another_run_is_refused(output: Store, cache: Path, finished: bool, below: str) -> None:
    finish(output, cache) if finished else begun(output, cache)
    before = {entry.name: entry for entry in output.entries()}
    inside = spec_in(output).model_copy(update={"output": f"{output.uri}/one{below}"})
    with pytest.raises(UsageError, match="is inside a run"):
        open_run_folder(inside, NOW, cache)
    assert {entry.name: entry for entry in output.entries()} == before


def test_start_removes_the_manifest_of_an_earlier_start(output: Store, cache: Path) -> None:
    begun(output, cache)
    output.write("one/MANIFEST.json", b"of a publication that was cut short")
    run = open_run_folder(spec_in(output), NOW, cache)
    assert output.find("one/MANIFEST.json") is None
    run.release()


def test_fresh_start_discards_the_earlier_start(output: Store, cache: Path) -> None:
    begun(output, cache)
    run = open_run_folder(spec_in(output, "train.epochs=3"), NOW, cache, fresh=True)
    assert run.newest_checkpoint == ""
    run.keep()
    run.release()
    assert written_spec(output).train.epochs == 3
    assert [entry.name for entry in output.below("one").entries()] == ["spec.yaml"]


def test_finished_run_is_not_restarted(output: Store, cache: Path) -> None:
    finish(output, cache)
    before = {entry.name: entry for entry in output.entries()}
    assert open_run_folder(spec_in(output), NOW, cache).finished
    with pytest.raises(UsageError, match=r"train\.epochs") as caught:
        open_run_folder(spec_in(output, "train.epochs=3"), NOW, cache)
    assert "--fresh" not in str(caught.value)  # --fresh would be refused
    with pytest.raises(UsageError, match="--fresh cannot restart it"):
        open_run_folder(spec_in(output), NOW, cache, fresh=True)
    assert {entry.name: entry for entry in output.entries()} == before


def test_run_without_checkpoint_accepts_a_new_spec(output: Store, cache: Path) -> None:
    for epochs in (2, 3):
        run = open_run_folder(spec_in(output, f"train.epochs={epochs}"), NOW, cache)
        run.keep()
        run.release()
        assert written_spec(output).train.epochs == epochs


def test_run_of_another_process_is_refused(output: Store, cache: Path) -> None:
    run = open_run_folder(spec_in(output), NOW, cache)
    progress = Listener()
    with pytest.raises(TemporaryError, match="Another process is working on this run"):
        open_run_folder(spec_in(output), NOW, cache, progress=progress)
    assert len(progress.heard) == 1
    run.release()
    open_run_folder(spec_in(output), NOW, cache).release()


def test_folder_that_is_not_a_run_is_left_unchanged(output: Store, cache: Path) -> None:
    output.write("one/thesis.txt", b"mine")
    with pytest.raises(UsageError, match="do not belong to a run"):
        open_run_folder(spec_in(output), NOW, cache)
    with pytest.raises(UsageError, match="do not belong to a run"):
        open_run_folder(spec_in(output), NOW, cache, fresh=True)
    assert [entry.name for entry in output.entries()] == ["one/thesis.txt"]


@pytest.mark.parametrize("fresh", [False, True])
def test_user_spec_does_not_make_a_folder_a_run(output: Store, cache: Path, fresh: bool) -> None:
    own = {"one/spec.yaml": b"# mine\ndata: {source: photos}\n", "one/model/mine.txt": b"mine"}
    for kept in (["one/spec.yaml"], list(own)):
        for name in kept:
            output.write(name, own[name])
        with pytest.raises(UsageError, match="do not belong to a run"):
            open_run_folder(spec_in(output), NOW, cache, fresh=fresh)
        assert {entry.name for entry in output.entries()} == set(kept)
        assert all(found.data == own[name] for name in kept if (found := output.read(name)))


def test_other_file_with_the_name_of_the_pointer_is_refused_before_training(
    tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "latest").write_text("my notes\nline 2\n")
    (tmp_path / "folder" / "latest").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "latest")  # reading it would block forever
    for name in ("file", "folder", "pipe"):
        with pytest.raises(UsageError, match="name of the pointer"):
            open_run_folder(spec_in(tmp_path / name), NOW, cache)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["latest"]


def test_folder_with_only_leftovers_of_a_crash_is_reused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".spec.yaml.abc.tmp").write_text("")
    run = open_run_folder(spec_in(tmp_path), NOW, cache)
    assert not run.finished
    run.release()


def test_resume_with_changed_data_precision_or_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="of the first start of this run cannot be read"):
        require_same_start(tmp_path, Start("aa", "float32", 20))
    write_json(tmp_path / "dataset.json", {"digest": "sha256:aa"})
    write_json(tmp_path / "environment.json", {"precision": "float32", "global_batch_size": 20})
    require_same_start(tmp_path, Start("aa", "float32", 20))
    with pytest.raises(
        UsageError, match="data changed since the first start of this run, or an earlier version of"
    ):
        require_same_start(tmp_path, Start("bb", "float32", 20))
    write_json(tmp_path / "dataset.json", {"digest": "sha256:aa", "split_by": "source"})
    with pytest.raises(UsageError, match=r"data changed since the first start of this run\. Choose"):
        require_same_start(tmp_path, Start("bb", "float32", 20))
    with pytest.raises(UsageError, match="precision changed"):
        require_same_start(tmp_path, Start("aa", "bfloat16", 20))
    words = r"global batch size .*all devices\) changed.*Received: 40, previously 20"
    with pytest.raises(UsageError, match=words):
        require_same_start(tmp_path, Start("aa", "float32", 40))
    with pytest.raises(UsageError, match=r"weights file changed .*Received: sha256 cc, previously none"):
        require_same_start(tmp_path, Start("aa", "float32", 20, weights={"sha256": "cc"}))
    begun = {"precision": "float32", "global_batch_size": 20, "weights": {"sha256": "cc"}}
    write_json(tmp_path / "environment.json", begun)
    require_same_start(tmp_path, Start("aa", "float32", 20, weights={"sha256": "cc", "origin": "moved"}))
    with pytest.raises(UsageError, match="Received: sha256 none, previously cc"):
        require_same_start(tmp_path, Start("aa", "float32", 20))


def test_resume_with_another_weights_file_is_refused(tmp_path: Path) -> None:
    spec = load_spec(overrides={"output": str(tmp_path)}, settings=["model={family: pretrained, weights: a}"])
    moved = load_spec(
        overrides={"output": str(tmp_path)}, settings=["model={family: pretrained, weights: b}"]
    )
    run = tmp_path / "one"
    run.mkdir()
    (run / "spec.yaml").write_text(dump_spec(spec))
    write_json(run / "dataset.json", {"digest": "sha256:aa"})
    write_json(run / "environment.json", {"weights": {"sha256": "cc"}})
    output = open_store(str(tmp_path))
    publish(output, "one", run)
    assert find_same_run(output, moved, "aa", "cc") == "one"
    assert find_same_run(output, spec, "aa", "dd") == ""
    assert find_same_run(output, spec, "aa") == ""


def test_repeated_starts_without_a_new_checkpoint_end_the_run(
    tmp_path: Path,
) -> None:
    for checkpoint in ("", "", "step-1.npz", "step-1.npz", "step-2.npz", "step-2.npz", "step-2.npz"):
        count_start(tmp_path, checkpoint, max_stalled_starts=3)
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"torn')
    count_start(tmp_path, "step-2.npz", max_stalled_starts=4)
    with pytest.raises(DivergedError, match=r"started 4 times from step-2\.npz"):
        count_start(tmp_path, "step-2.npz", max_stalled_starts=3)
    assert len((tmp_path / "starts.jsonl").read_text().splitlines()) == 9


def test_start_after_exactly_the_allowed_number_of_stalled_starts_is_allowed(tmp_path: Path) -> None:
    for _ in range(4):  # the fourth one follows three stalled starts
        count_start(tmp_path, "step-1.npz", max_stalled_starts=3)
    with pytest.raises(DivergedError, match="started 4 times"):
        count_start(tmp_path, "step-1.npz", max_stalled_starts=3)


def test_start_that_ended_with_an_error_message_is_not_counted(tmp_path: Path) -> None:
    for _ in range(4):
        count_start(tmp_path, "", max_stalled_starts=1)
        forget_start(tmp_path)
    count_start(tmp_path, "", max_stalled_starts=1)
    rows = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [row["checkpoint"] for row in rows] == [""]


def test_run_folder_returns_the_location_of_its_files(output: Store, cache: Path) -> None:
    run: RunFolder = open_run_folder(spec_in(output), NOW, cache)
    assert run.at("report.html") == f"{output.uri}/one/report.html"
    run.release()


def test_incomplete_files_of_killed_processes_are_removed(tmp_path: Path, cache: Path) -> None:
    open_run_folder(spec_in(tmp_path), NOW, cache).release()
    run = tmp_path / "one"
    count_start(run, "", 5)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / ".step-00000001.npz.ab.tmp").write_bytes(b"half")
    (run / ".model.tmp" / "variables").mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    open_run_folder(spec_in(tmp_path), NOW, cache).release()
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
    assert left == ["checkpoints", "notes.txt", "spec.yaml", "starts.jsonl"]
