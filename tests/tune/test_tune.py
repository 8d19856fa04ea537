"""`trainer tune`: parameters, proposals, pruning, and resuming a study."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.trainer_process import QUICK, error_line, refused, trainer

from trainer.errors import UsageError
from trainer.spec import load_spec
from trainer.storage.store import Store
from trainer.tune.parameters import Parameter, base_settings, parse_parameters, with_settings
from trainer.tune.search import Search, as_values, best_trial, lines_of, ranking
from trainer.tune.study import Records, Trial, open_study

RATE, NAME = "optimizer.learning_rate=1e-4..1e-1:log", "optimizer.name=sgd|adamw"


def parsed(*texts: str, settings: tuple[str, ...] = ()) -> list[Parameter]:
    return parse_parameters(texts, load_spec(settings=settings))


def search_of(*texts: str, **changes: Any) -> Search:
    return replace(Search(parsed(*texts), seed=7, is_maximized=True, warmup_epochs=0), **changes)


def complete(number: int, rate: float, values: dict[int, float]) -> Trial:
    return Trial(number, {"optimizer.learning_rate": rate}, "complete", max(values.values()), values)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (RATE, {"low": 1e-4, "high": 0.1, "is_log": True, "is_whole": False}),
        ("train.global_batch_size=8..64:8", {"low": 8, "high": 64, "step": 8.0, "is_whole": True}),
        ("train.epochs=1..9:3", {"low": 1, "high": 7, "is_whole": True}),
        ("train.label_smoothing=0..0.3:0.1", {"high": pytest.approx(0.3), "step": 0.1, "is_whole": False}),
        ("optimizer.weight_decay=0..1", {"is_whole": False}),
        ("train.label_smoothing=.1...5", {"low": 0.1, "high": 0.5}),
        ("optimizer.nesterov=true|false", {"choices": ("true", "false")}),
        (NAME, {"choices": ("sgd", "adamw")}),
        ("model.filters=[16, 32, 64]|[8, 8, 8]", {"choices": ("[16, 32, 64]", "[8, 8, 8]")}),
    ],
)
def test_parameter_is_parsed_with_its_kind(text: str, wanted: dict[str, Any]) -> None:
    settings = ("optimizer.name=sgd",) if "nesterov" in text else ()
    (found,) = parsed(text, settings=settings)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((), "at least one --parameter"),
        (("optimizer.learning_rat=1..2",), "Did you mean optimizer.learning_rate?"),
        (("optimizer.learning_rate",), "KEY=LOW..HIGH"),
        (("optimizer.learning_rate=0.1..0.1",), "range is empty"),
        (("optimizer.learning_rate=0.2..0.1",), "range is empty"),
        (("optimizer.learning_rate=0..1:log",), "must start above 0"),
        (("optimizer.learning_rate=0..1",), "optimizer.learning_rate must be greater than 0"),
        (("optimizer.learning_rate=0.1..1:5",), "a positive step that"),
        (("train.epochs=1..9:0.5",), "a positive integer step"),
        (("train.epochs=1.5..9",), "train.epochs must be a valid integer"),
        (("optimizer.learning_rate=0.1",), "at least two different choices"),
        (("optimizer.name=sgd|sgd",), "at least two different choices"),
        (("optimizer.name=sgd|adamm",), "optimizer.name must be"),
        (("train.scale_batch=true|maybe",), "train.scale_batch must be"),
        (("model.dense_units=[8]|[9]",), "another model.family"),
        ((RATE, "optimizer.learning_rate=1..2"), "once"),
        (("seed=1..5",), "best by chance"),
        (("data.validation_fraction=0.1..0.5",), "same held-out images"),
        (("model.weights=default|./w.h5",), "A weights file cannot be searched"),
        (("model={family: pretrained}|{family: pretrained, weights: gs://b/w.h5}",), "cannot be searched"),
        (("publish.release=true|false",), "does not change what is trained"),
        (
            ("model.dropout=0..0.5", "model={family: plain}|{family: residual}"),
            "One parameter contains the other",
        ),
    ],
)
def test_parameter_that_cannot_be_searched_is_refused_with_a_reason(
    texts: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        parsed(*texts)
    assert "Received: " in str(caught.value)


def test_value_valid_with_another_choice_is_accepted() -> None:
    assert len(parsed("optimizer.momentum=0..0.9", "optimizer.name=adamw|sgd")) == 2
    with pytest.raises(UsageError, match="momentum"):
        parsed("optimizer.momentum=0..0.9")


def test_first_trial_is_the_spec_if_within_the_ranges() -> None:
    spec = load_spec()
    assert base_settings(parsed(RATE, NAME), spec) == {
        "optimizer.learning_rate": 0.001,
        "optimizer.name": "adamw",
    }
    assert base_settings(parsed("optimizer.learning_rate=0.01..0.1"), spec) is None


def test_proposals_depend_on_seed_and_trials_only_and_fit_the_schema() -> None:
    texts = (RATE, NAME, "train.global_batch_size=8..64:8", "train.label_smoothing=0..0.3:0.1")
    search, base, trials = search_of(*texts), load_spec(), []
    for number in range(14):  # ten random trials, then TPE
        settings = search.propose(number, trials)
        assert settings == search_of(*texts).propose(number, trials)
        assert settings is not None
        with_settings(base, settings)
        assert settings["train.global_batch_size"] in range(8, 65, 8)
        trials.append(Trial(number, settings, "complete", 1 / (1 + number), {1: 0.5}))
    assert search.propose(0, []) != search.propose(1, [])
    assert search_of(*texts, seed=8).propose(3, trials[:3]) != search.propose(3, trials[:3])
    assert len({json.dumps(dict(each.settings)) for each in trials}) == 14


def test_search_ends_when_all_combinations_were_tried() -> None:
    search = search_of(NAME, "train.global_batch_size=8..16:8")
    trials: list[Trial] = []
    while (settings := search.propose(len(trials), trials)) is not None:
        trials.append(Trial(len(trials), settings, "failed"))
    assert len({json.dumps(dict(trial.settings)) for trial in trials}) == len(trials) == 4


def test_settings_near_good_trials_are_proposed_more_often_than_failed_ones() -> None:
    search = search_of("optimizer.learning_rate=0.01..1")
    good = [complete(number, 0.1 + number / 100, {1: 0.9}) for number in range(8)]
    bad = [
        Trial(8 + number, {"optimizer.learning_rate": 0.5 + number / 40}, "failed") for number in range(16)
    ]
    rates = [search.propose(number, [*good, *bad]) for number in range(24, 34)]
    assert sum(float((each or {})["optimizer.learning_rate"]) < 0.4 for each in rates) >= 8


def test_trial_below_the_median_is_pruned() -> None:
    trials = [complete(number, 0.01 + number / 100, {1: 0.3, 2: 0.5 + number / 100}) for number in range(4)]
    search = search_of(RATE)
    for last, is_pruning, is_pruned in ((0.4, True, True), (0.6, True, False), (0.4, False, False)):
        watch = replace(search, is_pruning=is_pruning).watch(
            Trial(9, {"optimizer.learning_rate": 0.05}), trials
        )
        watch.note(1, 0.2 if last == 0.4 else 0.4)
        watch.note(2, last)
        watch.note(2, 0.0)  # repeating an epoch changes nothing
        assert watch.should_prune() == is_pruned
    early = replace(search, warmup_epochs=3).watch(Trial(9, {"optimizer.learning_rate": 0.05}), trials)
    early.note(1, 0.1)
    assert not early.should_prune()
    assert not search.watch(Trial(9, {"optimizer.learning_rate": 0.05}), trials[:3]).should_prune()


def test_loss_is_minimized() -> None:
    trials = [
        complete(0, 0.01, {1: 0.7}),
        complete(1, 0.02, {1: 0.2}),
        Trial(2, {}, "failed", why="diverged"),
    ]
    assert [each.number for each in ranking(trials, is_maximized=False)] == [1, 0, 2]
    assert best_trial(trials, is_maximized=True) == trials[0]
    assert best_trial(trials[2:], is_maximized=True) is None


def test_study_is_reopened_and_a_different_study_is_refused(either_store: Store) -> None:
    about = {
        "metric": "validation/accuracy",
        "parameters": {"seed": "1"},
        "spec": "a",
        "start_from": "scratch",
    }
    assert open_study(either_store, about, "seed: 1")["start_from"] == "scratch"
    assert open_study(either_store, about | {"start_from": "runs/x"}, "")["start_from"] == "scratch"
    with pytest.raises(UsageError, match="another metric and spec"):
        open_study(either_store, about | {"metric": "loss", "spec": "b"}, "")
    records = Records(either_store)
    trials = [complete(0, 0.1, {1: 0.5}), Trial(1, {"optimizer.learning_rate": 0.2})]
    for trial in trials:
        records.write(trial)
    assert Records(either_store).all() == trials
    either_store.write("trials/001.json", b"{")
    with pytest.raises(UsageError, match="damaged"):
        Records(either_store).all()
    other = either_store.below("other")
    other.write("notes.txt", b"mine")
    with pytest.raises(UsageError, match="contains other files"):
        open_study(other, about, "")
    assert [entry.name for entry in other.entries()] == ["notes.txt"]


def test_summary_names_the_best_trial_and_that_no_test_images_were_read() -> None:
    trials = [
        complete(0, 0.1, {1: 0.5, 2: 0.625}),
        Trial(1, {"optimizer.learning_rate": 9}, "failed", why="diverged"),
    ]
    values = as_values(search_of(RATE), "accuracy", "runs/s", 3, trials)
    lines = lines_of(values | {"held_out_images": 8, "comparison": "", "command": "trainer train --set a=1"})
    assert lines[0] == "2 of 3 trials finished; validation accuracy of 8 held-out images"
    assert lines[3].split() == ["trial-000", "complete", "0.6250", "2", "-", "optimizer.learning_rate=0.1"]
    assert lines[4].split()[1] == "diverged"
    assert any("No test images were read" in line for line in lines)
    assert lines[-2:] == ["best       trial-000", "try        trainer train --set a=1"]


def test_invalid_search_is_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    words = ["tune", "--data", photos, "--output", tmp_path / "runs", *QUICK, "--trials", "2"]
    message = error_line(trainer(*words, "--parameter", "train.epoch=1..5", cache=tmp_path), 2)
    assert "Did you mean train.epochs?" in message
    ranked = [*words, "--parameter", RATE, "--metric", "mean_average_precision"]
    assert "data.labels=multi" in error_line(trainer(*ranked, cache=tmp_path), 2)
    missing = ["tune", "--data", tmp_path / "nowhere", "--output", tmp_path / "runs", "--trials", "2"]
    assert "no such folder" in error_line(trainer(*missing, "--parameter", RATE, cache=tmp_path), 65)
    code = "import sys; sys.modules['optuna'] = None; from trainer.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), "--parameter", RATE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused(done, 2, "pip install 'trainer[tune]'")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optimizer.learning_rate", "0.00012345..0.00022345:0.00005"),
        ("optimizer.learning_rate", "0.3333333333333333..0.4:0.00001"),
        ("optimizer.learning_rate", "1234.5678..1240:0.25"),
        ("train.label_smoothing", "0..0.3:0.1"),
    ],
)
def test_proposals_of_a_range_with_a_step_stay_on_its_grid(key: str, values: str) -> None:
    search = search_of(f"{key}={values}")
    (parameter,) = search.parameters
    trials: list[Trial] = []
    while len(trials) < 12 and (settings := search.propose(len(trials), trials)) is not None:
        value = settings[key]
        assert parameter.value_of(value) == value
        assert len(f"{value}") < 20
        trials.append(complete(len(trials), 0.0, {1: 0.5}))
        trials[-1] = replace(trials[-1], settings=settings)
    assert len(trials) == min(12, parameter.size())


def test_setting_off_the_grid_is_not_a_first_trial() -> None:
    (parameter,) = parsed("train.label_smoothing=0..0.3:0.1")
    assert parameter.value_of(0.1 + 0.2 - 0.1) == pytest.approx(0.2)
    assert parameter.value_of(0.10000005) is None  # Optuna's tolerance is 1e-8 of a step
