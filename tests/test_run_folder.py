"""The run folder: which one a spec gets, and when it is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from trainer.exits import UsageError
from trainer.run_folder import RunFolder, open_run_folder, require_same_start
from trainer.spec import RunSpec, load_spec, read_spec
from trainer.storage.local import write_json, write_text

NOW = datetime(2026, 1, 2, 3, 4, 5)


def spec_in(folder: Path, *settings: str, name: str | None = "one") -> RunSpec:
    return load_spec(recipe="demo", settings=settings, overrides={"output": str(folder), "run_name": name})


def begun(folder: Path) -> RunFolder:
    run = open_run_folder(spec_in(folder), NOW)
    write_text(run.checkpoints / "step-00000000.npz", "")
    return run


def test_a_new_run_is_named_after_recipe_moment_and_spec_and_can_be_found_by_its_file(tmp_path: Path) -> None:
    run = open_run_folder(spec_in(tmp_path, name=None), NOW)
    assert run.name.startswith("demo-20260102-030405-")
    again = open_run_folder(read_spec(run.path / "spec.yaml"), datetime(2027, 1, 1))
    assert again == run


def test_a_run_is_found_by_its_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = open_run_folder(spec_in(Path("runs")), NOW)
    written = (tmp_path / run.path / "spec.yaml").absolute()
    monkeypatch.chdir("elsewhere")
    assert open_run_folder(read_spec(written), NOW).path == tmp_path / "runs" / "one"


def test_a_begun_run_refuses_another_spec_with_the_keys(tmp_path: Path) -> None:
    run = begun(tmp_path)
    before = (run.path / "spec.yaml").read_text()
    with pytest.raises(UsageError, match=r"train\.epochs: 15 -> 3"):
        open_run_folder(spec_in(tmp_path, "train.epochs=3"), NOW)
    assert (run.path / "spec.yaml").read_text() == before
    # What can't change the result may change.
    assert open_run_folder(spec_in(tmp_path, "data.cache_mib=1"), NOW) == run


def test_a_run_that_never_began_takes_the_new_spec(tmp_path: Path) -> None:
    run = open_run_folder(spec_in(tmp_path), NOW)
    open_run_folder(spec_in(tmp_path, "train.epochs=3"), NOW)
    assert read_spec(run.path / "spec.yaml").train.epochs == 3


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a run"):
        open_run_folder(spec_in(tmp_path), NOW)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["thesis.txt"]


def test_a_folder_with_nothing_but_a_crashs_leftover_is_free(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".spec.yaml.abc.tmp").write_text("")
    assert not open_run_folder(spec_in(tmp_path), NOW).finished


def test_changed_data_or_precision_stop_a_begun_run(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with pytest.raises(UsageError, match="can't be read any more"):
        require_same_start(run, "aa", "float32")
    write_json(run.path / "dataset.json", {"digest": "sha256:aa"})
    write_json(run.path / "environment.json", {"precision": "float32"})
    require_same_start(run, "aa", "float32")
    with pytest.raises(UsageError, match="data changed"):
        require_same_start(run, "bb", "float32")
    with pytest.raises(UsageError, match="precision changed"):
        require_same_start(run, "aa", "bfloat16")
