"""The champion: promotion, challenges, rollback and their records."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from helpers.photos import draw_photo
from helpers.release_inputs import GAIN, LOSS, between, finished, measured
from helpers.trainer_process import QUICK, error_line, trainer

from trainer.errors import UsageError
from trainer.evaluate.metrics import Predictions
from trainer.release.audit_log import read_records
from trainer.release.challenge import ChallengeResult, PredictPair, challenge, promote, rollback
from trainer.release.overview import overview
from trainer.runs.champion import CHAMPION, read_champion
from trainer.runs.publish import verify
from trainer.storage import open_store
from trainer.storage.store import Store


def test_first_champion_must_beat_guessing(either_store: Store, tmp_path: Path) -> None:
    for name, right in (("one", 1), ("two", 6), ("three", 14)):
        measured(either_store, tmp_path / "local", name, right)
    for name, accuracy in (("one", "0.056"), ("two", "0.333")):
        outcome = challenge(either_store, name, GAIN, LOSS, between({}))
        assert not outcome.is_champion
        assert outcome.message == (
            f"{name} does not become champion, and there is no champion yet: it is no better than guessing: "
            f"its accuracy is {accuracy}, and always predicting a gives 0.333"
        )
        assert read_champion(either_store).name == ""
    assert challenge(either_store, "three", GAIN, LOSS, between({})).message.endswith("is the first champion")
    assert [record["is_released"] for record in read_records(either_store)] == [False, False, True]


def test_copies_of_training_images_do_not_make_a_champion(either_store: Store, tmp_path: Path) -> None:
    for name, right, copies in (("leak", 18, 18), ("half", 12, 9), ("good", 18, 6)):
        measured(either_store, tmp_path / "local", name, right, copies=copies)
    messages = {
        name: challenge(either_store, name, GAIN, LOSS, between({})).message
        for name in ("leak", "half", "good")
    }
    assert messages["leak"].endswith("all of its held-out images are exact copies of training images")
    assert (
        "its accuracy is 0.333, and always predicting a gives 0.333, without 9 exact copies"
        in messages["half"]
    )
    assert messages["good"].endswith("is the first champion")


def test_first_champion_is_evaluated_on_the_test_data(either_store: Store, tmp_path: Path) -> None:
    finished(either_store, tmp_path / "local", "unmeasured")
    measured(either_store, tmp_path / "local", "measured", 18)
    for name, has_test_data in (("unmeasured", False), ("measured", True)):
        outcome = challenge(either_store, name, GAIN, LOSS, between({name: 0.5}), has_test_data=has_test_data)
        assert not outcome.is_champion
        assert "its accuracy is 0.500, and always predicting cats gives 0.500" in outcome.message
        assert read_records(either_store, name)[0]["images"] == "test images"
        assert read_champion(either_store).name == ""
    assert challenge(either_store, "unmeasured", GAIN, LOSS, between({"unmeasured": 0.6})).is_champion


def test_refused_first_run_reports_that_there_is_no_champion(tmp_path: Path) -> None:
    output = open_store(str(tmp_path / "runs"))
    measured(output, tmp_path / "local", "poor", 6)
    output.write("poor/spec.yaml", b"recipe: demo\n")
    line = error_line(trainer("promote", output.at("poor"), cache=tmp_path), 4)
    assert "There is still no champion. Use --force to promote this run without a test." in line
    assert "stays" not in line


def test_every_challenge_is_recorded(either_store: Store, tmp_path: Path) -> None:
    good = {"one": 0.7, "two": 0.8, "three": 0.75}
    for name in good:
        finished(either_store, tmp_path / "local", name)
    ask = between(good)

    def try_it(name: str) -> ChallengeResult:
        return challenge(either_store, name, GAIN, LOSS, ask)

    assert try_it("one").message == "one is the first champion"
    assert try_it("two").message.startswith("two replaces one as champion: it is more accurate: +0.100")
    assert try_it("three").message.startswith(
        "two remains champion; three is not promoted: it is not more accurate"
    )
    assert try_it("two").message == "two is already the champion"
    assert read_champion(either_store).name == "two"
    records = read_records(either_store)
    assert [(record["run"], record["is_released"]) for record in records] == [
        ("one", True), ("two", True), ("three", False),
    ]  # fmt: skip
    assert records[1]["images"] == "test images"
    assert records[1]["accuracy"]["difference"] == pytest.approx(0.1)
    assert rollback(either_store).message == "one is the champion again, replacing two"
    assert read_champion(either_store).name == "one"
    with pytest.raises(UsageError, match="no earlier champion"):
        rollback(either_store)
    assert promote(either_store, "three").message == "three is the champion now (forced, without a test)"
    assert rollback(either_store).message.startswith("one is the champion again")
    assert len(read_records(either_store)) == 6


def test_concurrent_challengers_have_one_winner_and_two_records(either_store: Store, tmp_path: Path) -> None:
    good = {"zero": 0.6, "one": 0.7, "two": 0.8}
    for name in good:
        finished(either_store, tmp_path / "local", name)
    for _ in range(5):
        promote(either_store, "zero")
        before = len(read_records(either_store))
        found = challenge_at_once(either_store, between(good))
        assert read_champion(either_store).name == "two"  # the better run wins, in either order
        assert found["two"].is_champion
        assert len(read_records(either_store)) == before + 2


def challenge_at_once(output: Store, ask: PredictPair) -> dict[str, ChallengeResult]:
    """Let runs "one" and "two" challenge the same champion "zero" concurrently."""
    gate = threading.Barrier(2)
    found: dict[str, ChallengeResult] = {}

    def together(champion: str, challenger: str) -> tuple[Predictions, Predictions, str]:
        if champion == "zero":
            gate.wait(20)  # both have seen the same champion
        return ask(champion, challenger)

    def run(name: str) -> None:
        found[name] = challenge(open_store(output.uri), name, GAIN, LOSS, together)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_runs_that_cannot_be_champion_are_refused(either_store: Store, tmp_path: Path) -> None:
    finished(either_store, tmp_path / "local", "one")
    for name in ("gone", "../x", ""):
        either_store.write(CHAMPION, f"{name}\n".encode())
        with pytest.raises(UsageError, match="names a run that does not exist"):
            challenge(either_store, "one", GAIN, LOSS, between({}))
        assert not read_records(either_store)
    with pytest.raises(UsageError, match="Only a finished run"):
        promote(either_store, "nothing")
    assert promote(either_store, "one").is_champion


def test_damaged_file_does_not_hide_other_runs(either_store: Store, tmp_path: Path) -> None:
    for number, damaged in enumerate((b'{"test/accuracy": "x"}', b"[" * 100_000, b'{"test/accuracy": NaN}')):
        finished(either_store, tmp_path / "local", f"run-{number}")
        either_store.write(f"run-{number}/metrics.json", damaged)
        either_store.write(f"run-{number}/spec.yaml", b"")
    assert [row.accuracy for row in overview(either_store)] == [None, None, None]


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of a poor, a good and another poor run, each after its challenge."""
    folder = tmp_path_factory.mktemp("runs")
    many = folder / "many"
    for name in ("discs", "squares"):
        (many / name).mkdir(parents=True)
        for number in range(100):
            draw_photo(name, number % 12).resize((20 + number % 7, 16)).save(many / name / f"{number}.png")
    common = ["--data", many, "--output", folder / "runs", *QUICK, "--set", "publish.release=true",
              "--set", "data.validation_fraction=0.5"]  # fmt: skip
    for name, more in (
        ("poor", ["--set", "optimizer.learning_rate=1e-9"]),
        ("good", ["--set", "train.epochs=12", "--set", "optimizer.learning_rate=0.01"]),
        ("again", ["--set", "optimizer.learning_rate=1e-9", "--set", "seed=1"]),
    ):
        done = trainer("train", *common, "--run-name", name, *more, cache=folder / "cache")
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.log").write_text(done.stdout)
        if name == "poor":
            assert trainer("promote", folder / "runs" / name, "--force", cache=folder).returncode == 0
    return folder / "runs"


@pytest.mark.engine
def test_finished_runs_challenge_the_champion(runs: Path, tmp_path: Path) -> None:
    messages = {name: (runs.parent / f"{name}.log").read_text() for name in ("poor", "good", "again")}
    assert (
        "poor does not become champion, and there is no champion yet: it is no better than"
        in messages["poor"]
    )
    assert "good replaces poor as champion: it is more accurate" in messages["good"]
    assert "good remains champion; again is not promoted: it is not more accurate" in messages["again"]
    assert (runs / "champion").read_text() == "good\n"
    for name in ("poor", "good", "again"):
        assert verify(open_store(str(runs / name))) == []  # records are beside the runs, not in them
    done = trainer("train", runs / "good" / "spec.yaml", cache=tmp_path)
    assert "decided earlier" in done.stdout
    assert len(list((runs / "releases").iterdir())) == 4


@pytest.mark.engine
def test_runs_are_listed_promoted_and_rolled_back(runs: Path, tmp_path: Path) -> None:
    def run_command(*words: str | Path, code: int = 0) -> str:
        done = trainer(*words, cache=tmp_path / "cache")
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    table = [line.split() for line in run_command("runs", runs).splitlines()]
    columns = ["run", "state", "recipe", "epochs", "accuracy", "gap", "time", "published", "data"]
    assert table[0] == columns
    assert [row[0] for row in table[1:]] == ["again", "good", "poor"]
    assert [row[1] for row in table[1:]] == ["latest", "champion", "finished"]
    digest = json.loads((runs / "good" / "dataset.json").read_text())["digest"].removeprefix("sha256:")
    assert {row[-1] for row in table[1:]} == {digest[:7]}
    assert json.loads(run_command("runs", runs, "--json").splitlines()[1])["is_champion"]
    assert "The champion was not replaced" in run_command("promote", runs / "poor", code=4)
    assert (runs / "champion").read_text() == "good\n"
    assert "poor is the champion now (forced" in run_command("promote", runs / "poor", "--force")
    assert "good is the champion again" in run_command("rollback", runs)
    own = runs.parent / "many"
    frozen = shutil.copytree(own, runs.parent / "frozen")
    held_out = json.loads((runs / "again" / "dataset.json").read_text())["splits"]["validation"]["images"]
    same = f"file://{own}"  # another spelling of the same source
    without = f", without {200 - held_out} images that a model was trained on"
    for source, images, left_out in (
        (frozen, "all", without),
        (own, "validation", ""),
        (same, "validation", ""),
    ):
        setting = f"publish.test_data={source}"
        assert "again is not promoted: it is not more accurate" in run_command(
            "promote", runs / "again", "--set", setting, code=4
        )
        record = json.loads(sorted((runs / "releases").iterdir())[-1].read_text())
        assert record["images"] == f"{images} images of {source}{left_out}"
        assert record["count"] == held_out
    (own / "squares").rename(own / "rings")
    assert "have other classes than the models" in run_command("promote", runs / "again", code=65)
    assert (runs / "champion").read_text() == "good\n"
    assert "--set accepts only settings of the decision" in run_command(
        "promote", runs / "poor", "--set", "seed=3", code=2
    )
    assert "There is no such run" in run_command("promote", runs / "nowhere", code=2)
    assert "There is no such output folder" in run_command("runs", tmp_path / "missing", code=2)
    (tmp_path / "empty").mkdir()
    assert run_command("runs", tmp_path / "empty") == "no runs\n"
