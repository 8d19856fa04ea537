"""Comparison of runs as text and JSON, the mean over repeated runs, and implausible counts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from helpers.report_inputs import make_predictions, run_of

from trainer.cli.repeat import require_alike
from trainer.compare.comparison import compare_all, compare_runs
from trainer.compare.runs import Run, read_metrics
from trainer.compare.text import are_repeated, as_values, lines_of, spread, table
from trainer.errors import DataError, UsageError

CLASSES = ("cats", "dogs", "birds")


def test_accuracy_that_contradicts_its_counts_is_refused() -> None:
    for accuracy, count in ((0.9, 4), (0.5, 1)):
        text = json.dumps({"validation/accuracy": accuracy, "validation/count": count})
        with pytest.raises(UsageError, match="must be between 0 and 1, and match"):
            read_metrics(text, "x", "x")
    with pytest.raises(UsageError, match=r"must be between 0 and 1"):
        read_metrics('{"validation/accuracy": 1e200, "validation/count": 1e200}', "x", "x")
    found = read_metrics('{"validation/accuracy": 0.67, "validation/count": 3}', "x", "x")
    assert (found.correct, found.count) == (2, 3)


def test_mean_is_shown_only_for_runs_that_differ_in_their_seeds() -> None:
    def run(start: str = "", **spec: Any) -> Run:
        environment = {"started_from": start}
        return Run("a", "a", {}, "test", spec=spec, dataset={"digest": "sha256:1"}, environment=environment)

    data = {"source": "photos", "image_size": 64}
    same = (
        run(seed=1, data=data),
        run(seed=2, data=data | {"source": "elsewhere"}, output="x", publish={"keep_runs": 1}),
        run(seed=3, data=data, train={"log_interval_seconds": 5}),
    )
    assert are_repeated(same)
    require_alike(same)
    other = run(seed=4, data=data, start="/runs/a")
    assert not are_repeated([*same, other])
    with pytest.raises(DataError, match="initial weights changed"):
        require_alike([*same, other])
    assert not are_repeated([*same, run(seed=4, data=data, of_another_version=1)])
    assert not are_repeated([*same, run(seed=3, data=data | {"image_size": 32})])
    assert not are_repeated([*same, replace(same[0], dataset={"digest": "sha256:2"})])
    assert not are_repeated([Run("a", "a", {}, "test")] * 3)  # runs without spec and dataset
    sure = [Run("a", "a", {"test/correct": right, "test/count": 100}, "test") for right in (100, 100, 90)]
    assert "to 1.000 (3 runs)" in spread(sure)


def test_text_contains_everything() -> None:
    answers = [make_predictions("validation", CLASSES, 20, 1.0, seed=seed) for seed in (1, 2, 3)]
    made_by = {"devices": "cpu: 2 cores", "packages": {"tensorflow-cpu": "2.21"}, "trainer_version": "1.0"}
    timings = [{"seconds": 90.0, "images_per_second": 1234.0}]
    runs = [
        replace(run_of(each, str(number) * 40), environment=made_by, timings=timings,
                spec={"publish": {"usd_per_hour": 2}, "train": {"epochs": number + 1}})
        for number, each in enumerate(answers)
    ]  # fmt: skip
    lines = table(runs)
    assert max(map(len, lines)) < 80
    assert lines[0].split() == ["accuracy", "time", "images/s", "USD"]
    assert lines[1].split()[-2:] == ["1,234", "0.05"]
    long = table([replace(run, timings=[timings[0] | {"seconds": 7e5}]) for run in runs])[1]
    assert long.endswith("194 h 26 min 1,234    389")
    assert len(long) < 80
    mixed = [replace(runs[0], environment={"devices": "gpu: L4"}), *runs[1:]]
    assert table(mixed)[4].split("  ")[-1].strip() == "gpu: L4 | cpu: 2 cores"
    assert [line.split() for line in lines[4:]] == [
        ["devices", "cpu:", "2", "cores"], ["TensorFlow", "2.21"], ["trainer", "1.0"]
    ]  # fmt: skip
    pairs = compare_all(runs)
    values = json.loads(json.dumps(as_values(runs, pairs)))
    assert values["runs"][0]["cost_usd"] == pytest.approx(0.05)
    assert values["runs"][0]["metrics"]["validation/log_loss"] == runs[0].metrics["validation/log_loss"]
    assert values["spread"] is None
    assert as_values(runs, pairs, is_spread=True)["spread"] is not None
    better = make_predictions("validation", CLASSES, 20, 3.0)
    starred = [line for line in lines_of(compare_runs(runs[0], run_of(better, "better"))) if "*" in line]
    assert starred[-1] == "  * significant individually, not adjusted for several tests"
    assert not any("*" in line for line in lines_of(compare_runs(runs[0], runs[0])))
    first = values["comparisons"][0]
    assert first["only_one_right"] == [answers[0].names[index] for index in pairs[0].disagreements]
    assert first["comparisons_at_once"] == 2
    assert first["accuracy"]["p_value"] <= first["adjusted_p_value"]
