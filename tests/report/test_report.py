"""The HTML report: contents, accessibility, self-contained page and escaping."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.html_page import Page, require_self_contained
from helpers.report_inputs import (
    make_dataset,
    make_history,
    make_inputs,
    make_metrics,
    make_pixels,
    make_predictions,
)
from numpy.typing import NDArray

from trainer.data.items import Rejection
from trainer.errors import UsageError
from trainer.evaluate.explain import Explanation
from trainer.evaluate.metrics import Predictions
from trainer.report.inputs import ReportInputs
from trainer.report.page import write_report
from trainer.spec import dump_spec, load_spec

Pixels = NDArray[np.uint8]


def write_page(folder: Path, inputs: ReportInputs) -> Page:
    write_report(folder, inputs)
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    require_self_contained(page, text)
    return page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("run")
    return folder, write_page(folder, make_inputs())


def test_page_shows_verdict_settings_and_environment(report: tuple[Path, Page]) -> None:
    text = report[1].text
    for expected in (
        "cats-vs-dogs-augmented-20261123-191500-3fa9c1",
        "Fits well",
        "26 min 40 s",
        "cats_and_dogs_filtered.zip, folders, content 98b08edac0ff",
        "residual; filters 64, 128, 256; blocks 2, 2, 2; dropout 0.3; 128 x 128 pixels",
        "cpu: AMD EPYC, 2 cores, bfloat16 (avx512_bf16)",
        "tensorflow-cpu 2.21.0",
        "trainer train --recipe cats-vs-dogs-augmented --data 'my pictures.zip'",
        "1 image appears in train and validation",
        "without 1 copy of training images",
        "train: train/cats/00001.jpg, validation: validation/cats/00002.jpg",
        "truncated: ends after 1,024 bytes",
        "validate_every_epochs: 1",
    ):
        assert expected in text


def test_page_is_one_small_file_without_external_resources(report: tuple[Path, Page]) -> None:
    folder, page = report
    assert (folder / "report.html").stat().st_size < 500_000
    policy = [value for value in page.values("content") if "default-src" in value]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_images_and_plots_have_text_alternatives(report: tuple[Path, Page]) -> None:
    _, page = report
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert images
    assert all(each["alt"] for each in images)
    assert len(plots) == 5
    assert all(each["role"] == "img" and each["aria-label"] for each in plots)


def test_heading_levels_are_not_skipped(report: tuple[Path, Page]) -> None:
    levels = [int(tag[1]) for tag, _ in report[1].tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_plots_are_also_written_as_png(report: tuple[Path, Page]) -> None:
    names = {path.name for path in (report[0] / "plots").iterdir()}
    assert names == {"accuracy.png", "loss.png", "confusion.png", "calibration.png", "distribution.png"}
    assert all((report[0] / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_report_is_deterministic(report: tuple[Path, Page], tmp_path: Path) -> None:
    write_report(tmp_path, make_inputs())
    for name in ("report.html", "plots/confusion.png"):
        assert (tmp_path / name).read_bytes() == (report[0] / name).read_bytes()


def luminance(colour: str) -> float:
    """Return the relative luminance as defined by WCAG 2."""
    parts = [int(colour[offset : offset + 2], 16) / 255 for offset in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_colours_have_enough_contrast_in_both_schemes(report: tuple[Path, Page]) -> None:
    text = (report[0] / "report.html").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"(--\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)
    ]
    assert len(schemes) == 3
    for scheme in schemes:
        for ink in ("--ink", "--muted", "--blue", "--orange", "--green"):
            for paper in ("--paper", "--soft"):
                lighter, darker = sorted((luminance(scheme[ink]), luminance(scheme[paper])), reverse=True)
                assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, paper)


def test_plots_use_the_colours_of_the_page(report: tuple[Path, Page]) -> None:
    text = (report[0] / "report.html").read_text(encoding="utf-8")
    drawn = " ".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--blue)" in drawn
    assert re.findall(r"#[0-9a-f]{6}\b", re.sub(r'href="[^"]*"', "", drawn)) == []


ODD_NAMES = (
    '"><script>alert(1)</script>',
    "$\\frac$ & b " + "very_long_class_name_" * 8,
    "日本語\n\u202e\udcff",
)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Page]:
    """Return warnings and page of a run: one held-out image per class, all right, one epoch, odd names."""
    predictions = {
        "train": make_predictions("train", ODD_NAMES, 20, 4.0, 1),
        "validation": make_predictions("validation", ODD_NAMES, 1, 60.0, 2),
    }
    dataset = make_dataset(predictions)
    # Unequal counts, so that the aria-label names the smallest and the largest class.
    dataset["splits"]["train"]["classes"][ODD_NAMES[0]] = 30
    inputs = make_inputs(
        title="<b>odd</b>",
        predictions=predictions,
        metrics=make_metrics(predictions),
        dataset=dataset,
        history=make_history(1, "validation", (0.9, 0.8)),
        rejected=(Rejection("<img src=x onerror=alert(1)>.jpg", "not an image: <b>"),),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        page = write_page(tmp_path_factory.mktemp("odd"), inputs)
    return [str(each.message) for each in caught], page


def test_html_in_names_is_escaped(odd: tuple[list[str], Page]) -> None:
    _, page = odd
    assert "<b>odd</b>" in page.text
    assert '"><script>alert(1)</script>' in page.text
    assert any('to 30 ("><script>alert(1)</script>)' in label for label in page.values("aria-label"))
    assert "<img src=x onerror=alert(1)>.jpg" in page.text
    # One <b> and one <img> per example picture, and none from a name.
    assert page.count("b") == page.count("img") == 6


def test_report_of_one_epoch_without_mistakes(odd: tuple[list[str], Page]) -> None:
    _, page = odd
    assert "so there are no mistakes to show" in page.text
    assert "no class has a mistake" in page.text
    assert "1 epoch" in page.text


def test_glyphs_missing_from_the_font_cause_no_warnings(odd: tuple[list[str], Page]) -> None:
    assert odd[0] == []


def test_report_of_one_hundred_classes_is_legible(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(100))
    page = write_page(tmp_path, make_inputs(names, 3, 3.0, "test"))
    assert "Mistakes on training images" in page.text
    assert "The 10 classes with the lowest recall" in page.text
    assert "All 100 classes" in page.text
    matrix = next(a for t, a in page.tags if t == "svg" and "Confusion" in (a["aria-label"] or ""))
    assert matrix
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert page.count("path") < 1000


def test_confusion_matrix_of_few_classes_has_numbers(tmp_path: Path) -> None:
    rows = np.array([[0.9, 0.1]] * 41 + [[0.2, 0.8]] * 59)
    labels = np.array([0] * 41 + [1] * 59, dtype=np.int32)
    held = Predictions("validation", tuple(f"{n}.jpg" for n in range(100)), labels, rows, ("cats", "dogs"))
    predictions = {"train": make_inputs().predictions["train"], "validation": held}
    page = write_page(tmp_path, make_inputs(predictions=predictions, metrics=make_metrics(predictions)))
    assert any(word.strip() == "41" for word in page.words)


def test_missing_held_out_values_are_left_out_of_the_curves(tmp_path: Path) -> None:
    history = make_history(9, "validation", (0.95, 0.92), every=4)
    history[2]["train/loss"] = None
    history[3] |= {"validation/loss": float("nan"), "validation/accuracy": 0.99}
    page = write_page(tmp_path, make_inputs(history=history))
    label = next(each for each in page.values("aria-label") if each.startswith("Loss"))
    assert "nan" not in label
    assert "best: epoch 4, 0.990" in page.text


@pytest.mark.parametrize("rows", [0, 3])
def test_report_without_validation_or_without_history(tmp_path: Path, rows: int) -> None:
    history = make_history(rows, "validation", (0.95, 0.92), every=100) if rows else []
    page = write_page(tmp_path, make_inputs(history=history))
    assert page.count("svg") == (5 if rows else 3)


def test_split_of_one_class_has_no_auc_card(tmp_path: Path) -> None:
    held = Predictions(
        "test", ("a", "b"), np.zeros(2, dtype=np.int32), np.array([[0.9, 0.1], [0.2, 0.8]]), ("x", "y")
    )
    predictions = {"train": make_predictions("train", ("x", "y"), 20, 4.0), "test": held}
    inputs = make_inputs(
        ("x", "y"), held_out="test", predictions=predictions, metrics=make_metrics(predictions)
    )
    assert "0.5 is guessing" not in write_page(tmp_path, inputs).text


def test_only_the_first_rejected_files_are_listed(tmp_path: Path) -> None:
    rejected = tuple(Rejection(f"file {number:03}.jpg", "empty") for number in range(27))
    page = write_page(tmp_path, make_inputs(rejected=rejected))
    assert "27 files; the first 20 are shown, and rejected.csv lists all of them" in page.text
    assert "file 019.jpg" in page.text
    assert "file 020.jpg" not in page.text


def test_empty_environment_and_dataset_are_accepted(tmp_path: Path) -> None:
    page = write_page(tmp_path, make_inputs(environment={}, dataset={}, rejected=(), spec_yaml=""))
    assert "Run details" in page.text


def test_pictures_are_the_most_confident_mistakes_of_each_split(tmp_path: Path) -> None:
    requested: list[tuple[str, list[int]]] = []

    def pictures(split: str, indices: Any) -> Any:
        requested.append((split, indices.tolist()))
        return make_pixels(split, indices)

    inputs = make_inputs(skill=1.0, pictures=pictures)
    write_report(tmp_path, inputs)
    held = inputs.predictions["validation"]
    (of_train, trained), (split, wrong), (_, right) = requested[-3:]  # after those of the confused pairs
    assert (of_train, split) == ("train", "validation")
    train = inputs.predictions["train"]
    assert len(trained) == 12
    assert all(train.predicted[index] != train.labels[index] for index in trained)
    assert len(wrong) == 12
    assert all(held.predicted[index] != held.labels[index] for index in wrong)
    assert all(held.predicted[index] == held.labels[index] for index in right)
    confidences = [held.confidence[index] for index in wrong]
    assert confidences == sorted(confidences, reverse=True)


def test_pictures_of_every_confused_pair_stand_below_the_table(tmp_path: Path) -> None:
    labels = np.array([0] * 9 + [1] * 9 + [2] * 9, dtype=np.int32)
    rows = np.eye(3)[labels] * 0.7 + 0.1
    rows[:8] = (0.2, 0.7, 0.1)  # eight images of a are predicted as b
    rows[9] = (0.1, 0.2, 0.7)  # one image of b is predicted as c
    names = tuple(f"{'abc'[label]}/{number}.jpg" for number, label in enumerate(labels))
    held = Predictions("validation", names, labels, rows, ("a", "b", "c"))
    predictions = {"train": held, "validation": held}
    inputs = make_inputs(predictions=predictions, metrics=make_metrics(predictions))
    page = write_page(tmp_path, inputs)
    assert "a predicted as b: 6 of 8" in page.text
    assert "b predicted as c" in page.text
    text = (tmp_path / "report.html").read_text()
    cells = re.findall(r'<details class="cell">.*?</details>', text, re.DOTALL)
    assert [cell.count("<img") for cell in cells] == [6, 1]
    assert "true: a" in cells[0]
    assert all(f"a/{number}.jpg" in cells[0].replace("<wbr>", "") for number in range(6))


def test_maps_stand_beside_mistakes_and_correct_predictions(tmp_path: Path) -> None:
    explained: list[Pixels] = []

    def explain(pixels: Pixels) -> Explanation:
        explained.append(pixels)
        heat = np.zeros(pixels.shape[:2], np.float32)
        heat[:20, :20] = 1.0
        return Explanation(pixels, "cats", 0.9, heat)

    page = write_page(tmp_path, make_inputs(explain=explain))
    assert "Where the model looked" in page.text
    assert len(explained) == 4  # two mistakes and two correct predictions
    maps = [value for value in page.values("alt") if value.startswith("Occlusion map of validation/")]
    assert len(maps) == 4
    text = (tmp_path / "report.html").read_text()
    first, second = re.findall(
        r'<div class="explained">.*?<img src="([^"]+)".*?<img src="([^"]+)"', text, re.DOTALL
    )[0]
    assert first != second
    assert "Where the model looked" not in write_page(tmp_path / "without", make_inputs()).text


def test_small_pictures_are_lossless(tmp_path: Path) -> None:
    def pictures(split: str, indices: Any) -> Any:
        return make_pixels(split, indices)[:, :32, :32]

    page = write_page(tmp_path, make_inputs(pictures=pictures))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(
        (each["src"] or "").startswith("data:image/png") and each["class"] == "small" for each in images
    )


def test_error_names_the_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(UsageError, match="plots"):
        write_report(tmp_path, make_inputs())


def test_best_epoch_follows_the_monitor_of_early_stopping(tmp_path: Path) -> None:
    history = make_history(5, "validation", (0.95, 0.92))
    for row, (loss, accuracy) in zip(
        history, [(0.5, 0.7), (0.3, 0.8), (0.4, 0.9), (0.5, 0.85), (0.6, 0.84)], strict=True
    ):
        row |= {"validation/loss": loss, "validation/accuracy": accuracy}
    by_accuracy = write_page(tmp_path, make_inputs(history=history))
    assert "best: epoch 3, 0.900" in by_accuracy.text
    assert "epoch 3, 0.400" in by_accuracy.text
    assert "best: epoch 3, 0.400" not in by_accuracy.text
    spec = dump_spec(load_spec(settings=["train.early_stopping={monitor: loss}"]))
    by_loss = write_page(tmp_path, make_inputs(history=history, spec_yaml=spec))
    assert "best: epoch 2, 0.300" in by_loss.text
    assert "is from the last epoch" in by_loss.text
    # The best epoch of training takes precedence: early stopping may require a minimum change.
    known = make_inputs(history=history, spec_yaml=spec, best_epoch=1, keeps_best=True)
    by_training = write_page(tmp_path, known)
    assert "best: epoch 1, 0.500" in by_training.text
    assert "is from the best epoch" in by_training.text
