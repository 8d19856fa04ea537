"""Runs beside each other: what chance explains, what it doesn't, and what is different."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from report_inputs import make_predictions
from trainer_process import QUICK, error_line, refused, trainer

from trainer.compare.comparison import compare_runs, format_p
from trainer.compare.runs import Run, read_metrics
from trainer.compare.statistics import (
    bootstrap,
    exact_mcnemar,
    mean_interval,
    paired_accuracies,
    unpaired_accuracies,
)
from trainer.metrics import Predictions, compute_metrics

CLASSES = ("cats", "dogs", "birds")
NO_METRICS = (
    "[]", "{", '{"validation/accuracy": "x"}', '{"train/accuracy": 1}', '{"validation/accuracy": 0.7}',
    '{"validation/accuracy": 7, "validation/count": 10}',
)  # fmt: skip


def run_of(predictions: Predictions, name: str, digest: str = "sha256:1") -> Run:
    metrics = {f"validation/{key}": value for key, value in compute_metrics(predictions).items()}
    return Run(name, name, metrics, "validation", predictions, dataset={"digest": digest})


def binomial_tail(smaller: int, count: int) -> float:
    """Twice the probability of so few heads or fewer, by its definition."""
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(smaller + 1)) / 2**count)


@pytest.mark.parametrize(("first", "second"), [(38, 50), (0, 6), (1, 12), (5, 5), (120, 80), (0, 0)])
def test_mcnemars_test_is_the_toss_of_a_coin_for_each_image_that_differs(first: int, second: int) -> None:
    expected = binomial_tail(min(first, second), first + second)
    assert exact_mcnemar(first, second) == pytest.approx(expected, abs=1e-12)
    assert exact_mcnemar(second, first) == pytest.approx(expected, abs=1e-12)


def answers_of(random: np.random.Generator, accuracy: float, gain: float, count: int) -> tuple[int, int]:
    """Return how many images only the first, and only the second of two models gets right.

    The second is better by `gain`; they differ on a tenth of the images besides.
    """
    kinds = random.multinomial(count, [0.05, 0.05 + gain, accuracy - 0.05, 0.95 - accuracy - gain])
    return int(kinds[0]), int(kinds[1])


def test_the_interval_holds_the_true_gain_as_often_as_it_says_and_chance_is_seldom_taken_for_more() -> None:
    random = np.random.default_rng(1)
    for gain in (0.0, 0.02, 0.05):
        tests = [paired_accuracies(*answers_of(random, 0.8, gain, 1000), 1000) for _ in range(1000)]
        held = np.mean([test.low <= gain <= test.high for test in tests])
        assert 0.93 <= held <= 0.97
        if gain == 0:
            assert np.mean([not test.is_chance for test in tests]) <= 0.05
        assert np.mean([test.difference for test in tests]) == pytest.approx(gain, abs=0.003)


def test_counts_alone_are_tested_as_two_samples() -> None:
    random = np.random.default_rng(2)
    found = []
    for _ in range(400):
        first, second = random.binomial(1000, 0.72, 2)
        test = unpaired_accuracies((int(first), 1000), (int(second), 1000))
        found.append((test.low <= 0 <= test.high, test.is_chance))
    assert 0.93 <= np.mean([each[0] for each in found]) <= 0.975
    assert np.mean([each[1] for each in found]) >= 0.95
    assert not unpaired_accuracies((700, 1000), (800, 1000)).is_chance


def test_the_bootstrap_measures_what_the_metrics_measure_and_sees_what_is_there() -> None:
    first = make_predictions("validation", CLASSES, 150, 1.0, seed=1)
    second = replace(make_predictions("validation", CLASSES, 150, 2.2, seed=2), names=first.names)
    measured = [compute_metrics(each) for each in (first, second)]
    found = bootstrap(first, second)
    assert set(found) == {"macro_recall", "macro_f1", "log_loss", "brier"}
    for name, test in found.items():
        assert test.difference == pytest.approx(measured[1][name] - measured[0][name], abs=1e-6), name
        assert test.low < test.difference < test.high
        assert not test.is_chance
    same = bootstrap(first, first)
    assert all(test.is_chance and test.low == test.high == 0 for test in same.values())
    two = make_predictions("validation", CLASSES[:2], 50, 1.0)
    other = make_predictions("validation", CLASSES[:2], 50, 1.0, seed=3)
    expected = compute_metrics(other)["brier"] - compute_metrics(two)["brier"]
    assert bootstrap(two, other)["brier"].difference == pytest.approx(expected, abs=1e-6)


def test_a_class_without_images_counts_in_no_mean() -> None:
    whole = make_predictions("validation", CLASSES, 60, 1.0)
    kept = np.flatnonzero(whole.labels != 2)
    first = replace(whole, labels=whole.labels[kept], probabilities=whole.probabilities[kept],
                    names=tuple(whole.names[i] for i in kept))  # fmt: skip
    second = replace(first, probabilities=np.roll(first.probabilities, 1, axis=0))
    expected = compute_metrics(second)["macro_f1"] - compute_metrics(first)["macro_f1"]
    assert bootstrap(first, second)["macro_f1"].difference == pytest.approx(expected, abs=1e-9)


def test_a_mean_has_students_interval() -> None:
    mean, deviation, half = mean_interval([0.70, 0.72, 0.74, 0.71, 0.73])
    assert (mean, round(deviation, 6)) == (pytest.approx(0.72), 0.015811)
    assert half == pytest.approx(2.776445 * 0.015811 / math.sqrt(5), rel=1e-4)
    assert math.isnan(mean_interval([0.7])[1])


def test_pairs_are_judged_in_words() -> None:
    first = make_predictions("validation", CLASSES, 200, 1.0, seed=1)
    again = compare_runs(run_of(first, "a"), run_of(first, "b"))
    assert again.verdict == "The same: right and wrong on the same 600 images."
    other = make_predictions("validation", CLASSES, 200, 1.0, seed=2)
    same = compare_runs(run_of(first, "a"), run_of(other, "b"))
    assert same.verdict.startswith("The same within chance: ")
    assert f"{same.only_first} to {same.only_second} (exact McNemar p = " in same.verdict
    better = make_predictions("validation", CLASSES, 200, 3.0, seed=3)
    for pair in (compare_runs(run_of(first, "a"), run_of(better, "b")),
                 compare_runs(run_of(better, "b"), run_of(first, "a"))):  # fmt: skip
        assert pair.verdict.startswith("b is better by 0.")
        assert "exact McNemar p < 0.0001" in pair.verdict
    assert len(pair.disagreements) == pair.only_first + pair.only_second


def test_other_data_and_counts_alone_are_no_pairs() -> None:
    first = make_predictions("validation", CLASSES, 200, 1.0)
    pair = compare_runs(run_of(first, "a"), run_of(first, "b", digest="sha256:2"))
    assert "on different data, so not as pairs" in pair.verdict
    assert not pair.others
    papers = [
        read_metrics(json.dumps({"validation/accuracy": share, "validation/count": 1000}), "x", name)
        for name, share in (("one", 0.712), ("two", 0.725))
    ]
    pair = compare_runs(*papers)
    assert pair.verdict.startswith("The same within chance: Fisher's exact p = 0.5")
    assert "from the counts alone" in pair.verdict


def test_small_probabilities_are_written_with_two_digits() -> None:
    assert [format_p(value) for value in (0.5, 0.0312, 0.00123, 0.00001)] == [
        "0.50",
        "0.031",
        "0.0012",
        "< 0.0001",
    ]


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one spec with other seeds, and two of one epoch: with fewer, and with other images."""
    folder = tmp_path_factory.mktemp("runs")
    less, other = (shutil.copytree(photos, folder / name) for name in ("less", "other"))
    (less / "discs" / "0.png").unlink()
    for path in other.rglob("*.png"):
        ImageOps.mirror(Image.open(path)).save(path)
    for name, data, more in (
        ("one", photos, ["--set", "seed=1"]),
        ("two", photos, ["--set", "seed=2"]),
        ("less", less, ["--set", "train.epochs=1"]),
        ("other", other, ["--set", "train.epochs=1"]),
    ):
        done = trainer(
            "train", "--data", data, "--output", folder / "runs", "--run-name", name, *QUICK, *more,
            cache=folder / "cache",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.mark.engine
def test_runs_are_compared_on_the_terminal(runs: Path, tmp_path: Path) -> None:
    done = trainer("compare", runs / "one", runs / "two", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["one", "two"]
    assert all(len(line) < 80 for line in lines)
    assert "  seed  " in done.stdout
    assert "different spec" in done.stdout
    assert any(line.split() == ["seed", "1", "2"] for line in lines)
    assert "different data" not in done.stdout
    done = trainer("compare", runs / "one", runs / "one", cache=tmp_path)
    assert "The same: right and wrong on the same" in done.stdout
    # As every week: more to learn from, and the same to be asked about.
    done = trainer("compare", runs / "one", runs / "less", cache=tmp_path)
    assert "exact McNemar" in done.stdout or "right and wrong on the same" in done.stdout
    assert "train/discs" in done.stdout
    done = trainer("compare", runs / "one", runs / "other", cache=tmp_path)
    assert "on different data, so not as pairs" in " ".join(done.stdout.split())
    done = trainer("compare", runs / "one", runs / "two", runs / "less", cache=tmp_path)
    assert "standard deviation" not in done.stdout
    assert "one and less" in done.stdout
    done = trainer("compare", runs / "one", runs / "two", runs / "one", cache=tmp_path)
    assert "standard deviation" in done.stdout


@pytest.mark.engine
def test_all_of_it_is_told_as_json(runs: Path, tmp_path: Path) -> None:
    done = trainer("compare", runs / "one", runs / "latest", "--json", cache=tmp_path)
    told = json.loads(done.stdout)
    assert [run["name"] for run in told["runs"]] == ["one", "latest"]
    metrics = json.loads((runs / "one" / "metrics.json").read_text())
    assert told["runs"][0]["accuracy"] == metrics["validation/accuracy"]
    assert {"verdict", "is_paired", "accuracy", "differences"} <= set(told["comparisons"][0])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, Any]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.engine
def test_the_page_shows_curves_and_the_images_that_they_disagree_on(runs: Path, tmp_path: Path) -> None:
    done = trainer("compare", runs / "one", runs / "two", "--html", tmp_path / "page.html", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    told = json.loads(trainer("compare", runs / "one", runs / "two", "--json", cache=tmp_path).stdout)
    pair = told["comparisons"][0]
    assert len(page.images) == pair["only_first_right"] + pair["only_second_right"] > 0
    assert all(link.startswith("data:image/") for link in page.links)  # opens offline
    assert text.count("<svg") == 2
    assert "<script" not in text
    refused(trainer("compare", runs / "one", runs / "two", "--html", "/proc/x.html", cache=tmp_path), 2)


@pytest.mark.engine
def test_pictures_that_are_gone_are_no_error(runs: Path, tmp_path: Path) -> None:
    copies = [shutil.copytree(runs / name, tmp_path / name) for name in ("one", "two")]
    for copy in copies:
        publish_again(copy, "spec.yaml", lambda text: text.replace("photos", "nowhere"))
    done = trainer("compare", *copies, "--html", tmp_path / "page.html", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The images can&#39;t be shown" in (tmp_path / "page.html").read_text()


def publish_again(run: Path, name: str, change: Any) -> None:
    """Change a file of a finished run as if it had been so when it was published."""
    import hashlib

    (run / name).write_text(change((run / name).read_text()))
    manifest = json.loads((run / "MANIFEST.json").read_text())
    for each in manifest["files"]:
        if each["path"] == name:
            data = (run / name).read_bytes()
            each |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(manifest)
    (run / "MANIFEST.json").write_text(text)
    (run / "_SUCCESS").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")


@pytest.mark.engine
def test_what_cannot_be_compared_is_named(runs: Path, tmp_path: Path) -> None:
    def said(code: int, *uris: Path | str) -> str:
        done: subprocess.CompletedProcess[str] = trainer("compare", *uris, cache=tmp_path)
        return error_line(done, code)

    one = runs / "one"
    assert "Two runs at least" in said(2, one)
    assert "There is no finished run" in said(2, one, tmp_path / "nowhere")
    copy = shutil.copytree(one, tmp_path / "copy")
    (copy / "_SUCCESS").unlink()
    assert "not finished" in said(2, one, copy)
    for name in ("history.jsonl", "predictions.csv"):
        damaged = shutil.copytree(one, tmp_path / name)
        (damaged / name).write_text("x")
        assert f"not as it was published. Received: {damaged / name}" in said(65, one, damaged)
        (damaged / name).unlink()
        assert f"is missing. Received: {damaged / name}" in said(65, one, damaged)
    other = shutil.copytree(one, tmp_path / "other")
    publish_again(other, "predictions.csv", lambda text: text.replace("discs", "rings"))
    assert "Only models of the same classes" in said(2, one, other)
    newer = shutil.copytree(one, tmp_path / "newer")
    publish_again(newer, "MANIFEST.json", lambda text: text.replace('"schema": 1', '"schema": 2'))
    assert "another version" in said(2, one, newer)
    for number, text in enumerate(NO_METRICS):
        (tmp_path / f"{number}.json").write_text(text)
        said(2, one, tmp_path / f"{number}.json")
