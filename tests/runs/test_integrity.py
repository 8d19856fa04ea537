"""Integrity checks of published runs: a changed model is neither loaded nor made champion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.published_model import export, export_writer, publish_run, swap_classes
from PIL import Image

from trainer.cli.paths import local_model
from trainer.cli.predict import PredictOptions, evaluate_command, predict_command
from trainer.data.progress import SilentProgress
from trainer.errors import DataError, UsageError
from trainer.evaluate.metrics import Predictions
from trainer.release.challenge import challenge, promote, rollback
from trainer.runs import find_start
from trainer.runs.champion import read_champion
from trainer.runs.publish import verify
from trainer.storage.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def writer(model: Path) -> tuple[Path, Path]:
    """Return a model that writes a file when it runs, and the path of that file."""
    victim = model.parent / "victim"
    return export_writer(model.parent / "writer", model, victim), victim


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (folder := tmp_path / "pictures" / "cats").mkdir(parents=True)
    Image.new("RGB", (20, 20), (200, 10, 10)).save(folder / "red.png")
    return folder / "red.png"


def lose_variables(run: Store, writer: Path) -> str:
    for entry in run.entries("model/variables/"):
        run.remove(entry.name)
    return "model/variables/variables.data-00000-of-00001 is missing"


def swap_names(run: Store, writer: Path) -> str:
    swap_classes(run)
    return "model/assets/model.json has other contents"


def replace_program(run: Store, writer: Path) -> str:
    for path in writer.rglob("*"):
        if path.is_file():
            run.upload(path, f"model/{path.relative_to(writer)}")
    return "model/"


def flip_bit(run: Store, writer: Path) -> str:
    found = run.read("model/saved_model.pb")
    data = bytearray(found.data if found else b"")
    data[len(data) // 2] ^= 4
    run.write("model/saved_model.pb", bytes(data))
    return "model/saved_model.pb has other contents"


def add_file(run: Store, writer: Path) -> str:
    run.write("model/saved_model.pbtxt", b"")
    return "model/saved_model.pbtxt is not in MANIFEST.json"


def change_manifest(run: Store, writer: Path) -> str:
    found = run.read("MANIFEST.json")
    run.write("MANIFEST.json", (found.data if found else b"") + b" ")
    return "MANIFEST.json is not the one that was published"


DAMAGES = (lose_variables, swap_names, replace_program, flip_bit, add_file, change_manifest)


def never(champion: str, challenger: str) -> tuple[Predictions, Predictions, str]:
    raise AssertionError("nothing of a changed run is asked")


def test_changed_run_is_not_used(
    either_store: Store, model: Path, writer: tuple[Path, Path], picture: Path, tmp_path: Path
) -> None:
    output = either_store
    for name in ("one", "two", "three"):
        publish_run(output, name, model)
    for name in ("two", "three"):
        promote(output, name)
    run, data = output.below("two"), str(picture.parents[1])
    predict_command(run.uri, [str(picture)], tmp_path)
    whole = {entry.name: output.read(f"two/{entry.name}").data for entry in run.entries()}  # type: ignore[union-attr]
    before = [entry.name for entry in output.entries("releases/")]
    uses: list[Callable[[], object]] = [
        lambda: predict_command(run.uri, [str(picture)], tmp_path),
        lambda: predict_command(run.at("model"), [str(picture)], tmp_path, PredictOptions(trust=True)),
        lambda: evaluate_command(run.uri, data, tmp_path, False, []),
        lambda: promote(output, "two"),
        lambda: challenge(output, "two", 0.0, 0.05, never),
        lambda: rollback(output),
    ]
    for damage in DAMAGES:
        problem = damage(run, writer[0])
        more = [lambda: find_start(output, run.uri)] if damage is lose_variables else []
        for use in (*uses, *more):
            with pytest.raises(DataError, match="The run differs from its published state") as raised:
                use()
            assert problem in str(raised.value), damage.__name__
        assert read_champion(output).name == "three"
        assert [entry.name for entry in output.entries("releases/")] == before
        assert not writer[1].exists()
        for entry in run.entries():
            run.remove(entry.name)
        for file, contents in whole.items():
            run.write(file, contents)
        assert verify(run) == []
    assert rollback(output).is_champion


def test_model_below_a_symbolic_link_is_checked_against_its_run(
    model: Path, tmp_path: Path, either_store: Store
) -> None:
    run = publish_run(either_store, "one", model)
    place = run.at("model")
    if Path(run.uri).is_dir():
        (tmp_path / "link").symlink_to(place)
        place = str(tmp_path / "link")
    local_model(place, tmp_path, SilentProgress())
    swap_classes(run)
    with pytest.raises(DataError, match=r"model/assets/model\.json has other contents"):
        local_model(place, tmp_path, SilentProgress())


def test_run_without_marker_is_not_a_published_model(
    model: Path, tmp_path: Path, either_store: Store
) -> None:
    run = publish_run(either_store, "one", model)
    swap_classes(run)
    run.remove("_SUCCESS")
    for place in (run.uri, run.at("model")):
        with pytest.raises(UsageError, match="The run is not finished"):
            local_model(place, tmp_path, SilentProgress())
    run.remove("MANIFEST.json")  # a bare model, without a published run, is accepted
    local_model(run.at("model"), tmp_path, SilentProgress())


def test_run_with_changed_metrics_does_not_become_champion(model: Path, either_store: Store) -> None:
    run = publish_run(either_store, "one", model)
    run.write("metrics.json", b'{"validation/accuracy": 0.9}')
    for use in (
        lambda: promote(either_store, "one"),
        lambda: challenge(either_store, "one", 0.0, 0.05, never),
    ):
        with pytest.raises(DataError, match=r"metrics\.json has other contents"):
            use()
    assert not read_champion(either_store).name
