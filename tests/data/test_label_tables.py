"""Label tables with any number of labels per image, the split of such images, and rejected inputs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.layout_files import put
from helpers.several_labels import SHAPES, label_sets, put_data, put_pictures, put_table

from trainer.data.dataset import Dataset
from trainer.data.items import Item
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.data.readers import SourceContents, read_layout
from trainer.data.readers.import_files import Buckets
from trainer.data.split import hold_out, with_thresholds
from trainer.errors import DataError, TrainerError, UsageError
from trainer.spec import load_spec
from trainer.spec.schema import DataSpec

Labels = dict[str, tuple[str, ...]]

NO_BUCKETS = Buckets(lambda uris: {})


def read(root: Path, layout: str = "auto") -> SourceContents:
    return read_layout(root, layout, NO_BUCKETS, None, "multi")


def labels_of(found: SourceContents) -> Labels:
    return {item.name: item.classes for item in found.items}


def load(source: Path, **settings: object) -> Dataset:
    spec = DataSpec.model_validate({"source": str(source), "image_size": 8, "labels": "multi", **settings})
    return load_dataset(spec, source.parent / "cache", SilentProgress(), lambda rejected: None)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("path", "labels"), ("1.png", "a;b"), ("2.png", "b | c"), ("3.png", "")],
         {"1.png": ("a", "b"), "2.png": ("b", "c"), "3.png": ()}),
        ([("path", "label"), ("1.png", "a"), ("2.png", "c"), ("1.png", "b"), ("3.png", "a"), ("1.png", "a")],
         {"1.png": ("a", "b"), "2.png": ("c",), "3.png": ("a",)}),
        ([("split", "path", "tags"), ("train", "1.png", "haze primary"), ("train", "2.png", "clear primary"),
          ("test", "3.png", "clear haze"), ("test", "4.png", "clear haze primary")],
         {"1.png": ("haze", "primary"), "2.png": ("clear", "primary"), "3.png": ("clear", "haze"),
          "4.png": ("clear", "haze", "primary")}),
        ([("path", "breed"), ("1.png", "golden retriever"), ("2.png", "beagle"),
          ("3.png", "['beagle', 'pug']")],
         {"1.png": ("golden retriever",), "2.png": ("beagle",), "3.png": ("beagle", "pug")}),
        ([("image", "width", "cat", "big, dog", "fold"), ("1.png", "640", "1", "0", "0"),
          ("2.png", "480", "1.0", "true", "1"), ("3.png", "320", "0", "False", "0")],
         {"1.png": ("cat",), "2.png": ("big, dog", "cat"), "3.png": ()}),
        ([("train", "1.png", "a", "b"), ("test", "2.png", "b"), ("", "3.png")],
         {"1.png": ("a", "b"), "2.png": ("b",), "3.png": ()}),
    ],
    ids=["cells", "rows", "blanks", "names-with-blanks", "columns", "vertex"],
)  # fmt: skip
def test_table_defines_several_labels_per_image(
    tmp_path: Path, rows: list[tuple[str, ...]], expected: Labels
) -> None:
    put_table(put(tmp_path, *expected) / "labels.csv", rows)
    found = read(tmp_path)
    assert labels_of(found) == expected
    assert found.layout == "import"
    assert found.rejections == []
    without = sum(not labels for labels in expected.values())
    assert bool(without) == any("no label; used as negatives" in text
                                for text in found.warnings)  # fmt: skip
    assert labels_of(read(tmp_path / "labels.csv", "import")) == expected


def test_vertex_ai_json_lines_define_several_labels(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png", "3.png")
    lines: list[dict[str, object]] = [
        {"imageGcsUri": "1.png", "classificationAnnotations": [{"displayName": "b"}, {"displayName": "a;c"}]},
        {"imageGcsUri": "2.png", "classificationAnnotation": {"displayName": "a"}},
        {"imageGcsUri": "3.png", "classificationAnnotations": [{"name": "a"}]},
    ]
    (tmp_path / "import.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(tmp_path)
    assert labels_of(found) == {"1.png": ("a;c", "b"), "2.png": ("a",)}
    (rejection,) = found.rejections
    assert rejection.reason.startswith("no imageGcsUri, or a classificationAnnotations without")


def test_several_labels_in_single_label_mode_are_rejected_with_the_setting(tmp_path: Path) -> None:
    put_table(put(tmp_path, "1.png", "2.png", "3.png") / "labels.csv",
              [("path", "label"), ("1.png", "a"), ("2.png", "a;b"), ("3.png", "b")])  # fmt: skip
    reasons = {each.name: each.reason for each in read_layout(tmp_path, "auto", NO_BUCKETS).rejections}
    assert (
        reasons["labels.csv:3"]
        == "several labels in one cell: a;b; an image has one class, unless data.labels=multi"
    )
    (tmp_path / "labels.csv").write_text("path,a,b\n1.png,1,1\n2.png,0,0\n3.png,1,0\n")
    with pytest.raises(DataError, match="for one 0/1 column per label"):
        read_layout(tmp_path, "import", NO_BUCKETS)


def columns(*cells: str) -> list[tuple[str, ...]]:
    return [("path", "a", "b"), *((f"{number}.png", *each) for number, each in enumerate(cells))]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (columns("10", "01", "10", "01", "1-"), {}, "0/1 label column of a table has another value"),
        ([("path", "labels"), ("0.png", "a"), ("1.png", "a"), ("2.png", "")], {}, "at least two labels"),
        ([("path", "labels", "split"), ("0.png", "a;b", "train"), ("1.png", "b", "train"),
          ("2.png", "a;c", "test")], {}, "on held-out images and on no training image"),
        ([("path", "labels", "split"), ("0.png", "a", "train"), ("0.png", "b", "test")], {}, "in two splits"),
        ([("path", "labels", "split"), ("0.png", "a", "test"), ("1.png", "b", "validation")], {},
         "no images in train"),
        (None, {}, "data.labels=multi requires a table"),
        (columns("10", "01"), {"layout": "folders"}, "data.layout=folders and"),
        ([("path", "kind"), ("0.png", "a")], {}, "labels.csv is not used: no column has the name"),
    ],
    ids=["not-0-1", "one-label", "label-without-training", "two-splits", "no-training", "folders",
         "layout", "no-label-column"],
)  # fmt: skip
def test_unusable_multi_label_data_is_an_error(
    tmp_path: Path, rows: list[tuple[str, ...]] | None, settings: dict[str, object], words: str
) -> None:
    data = tmp_path / "data"
    put_pictures(data / "a" if rows is None else data, [("disc",)] * 5)
    for path in data.glob("0*.png"):
        path.rename(data / f"{int(path.stem)}.png")
    if rows is not None:
        put_table(data / "labels.csv", rows)
    with pytest.raises(DataError, match=words) as error:
        load(data, **settings)
    assert "Received: " in str(error.value)


def test_column_without_a_one_is_not_a_label(tmp_path: Path) -> None:
    put_pictures(tmp_path / "data", [("disc",)] * 6)
    rows = [("path", "a", "b", "c"), *((f"{n:04d}.png", n % 2, 1 - n % 2, 0) for n in range(6))]
    put_table(tmp_path / "data" / "t.csv", rows)
    dataset = load(tmp_path / "data")
    assert dataset.class_names == ("a", "b")
    assert "t.csv: column c is not used: it has no 1" in dataset.warnings


def test_single_label_settings_and_shards_are_an_error(tmp_path: Path) -> None:
    for setting in ("model={family: plain, binary_unit: true}", "data.labels=many"):
        with pytest.raises(UsageError, match=r"binary_unit|data\.labels"):
            load_spec(settings=["data.labels=multi", setting])
    with pytest.raises(UsageError, match=r"mean_average_precision requires data\.labels=multi"):
        load_spec(settings=["train.early_stopping={monitor: mean_average_precision}"])
    (tmp_path / "shards.json").write_text("{}")
    with pytest.raises(TrainerError, match="Received"):
        load(tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load(put_data(tmp_path_factory.mktemp("drawn") / "data", 120), threshold_fraction=0.25)


def test_labels_are_a_matrix_with_a_split_for_thresholds(drawn: Dataset) -> None:
    assert drawn.class_names == SHAPES
    assert list(drawn.splits) == ["train", "thresholds", "validation"]
    sets = dict(enumerate(label_sets(120)))
    for split in drawn.splits.values():
        for item, row in zip(split.items, split.labels, strict=True):
            assert tuple(np.array(SHAPES)[row == 1]) == sets[int(item.name.removesuffix(".png"))]
    assert drawn.summary["labels"] == "multi"
    counts = {name: each["images"] for name, each in drawn.summary["splits"].items()}
    assert counts == {"train": 72, "thresholds": 24, "validation": 24}
    total = sum(each["unlabelled"] for each in drawn.summary["splits"].values())
    assert total == sum(not labels for labels in sets.values())


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def random_sets(count: int, seed: int) -> dict[str, set[str]]:
    random, shares = np.random.default_rng(seed), np.geomspace(0.5, 0.01, 12)
    return {
        digest(seed, n): {f"l{k}" for k in np.flatnonzero(random.random(12) < shares)} for n in range(count)
    }


def test_each_label_is_stratified_in_any_order_of_images() -> None:
    for seed in range(10):
        labels = random_sets(500, seed)
        held = hold_out(labels, 0.2)
        assert hold_out(dict(reversed(list(labels.items()))), 0.2) == held
        assert abs(len(held) - 100) <= 5
        totals = Counter(label for each in labels.values() for label in each)
        counts = Counter(label for content in held for label in labels[content])
        for label, total in totals.items():
            assert abs(counts[label] - 0.2 * total) <= max(2.0, 0.05 * total), (label, total)
            assert counts[label] < total
            assert counts[label] > 0 or total < 3


def test_adding_images_moves_few_images_between_splits() -> None:
    labels = random_sets(1000, 1)
    before = hold_out(dict(list(labels.items())[:900]), 0.2)
    after = hold_out(labels, 0.2) & set(list(labels)[:900])
    assert len(before ^ after) <= 0.25 * len(before)


def test_rare_cooccurring_labels_stay_in_training() -> None:
    held = hold_out({"x": {"a", "b"}, "y": {"a", "c"}, "z": {"b"}, "w": {"c"}}, 0.5)
    for label in "abc":
        assert any(label in each for content, each in
                   {"x": {"a", "b"}, "y": {"a", "c"}, "z": {"b"}, "w": {"c"}}.items()
                   if content not in held)  # fmt: skip


def test_threshold_images_come_from_training_and_duplicates_stay_together() -> None:
    sets = [("a",) if number // 2 % 2 else ("b",) for number in range(100)]
    items = [
        Item(str(number), "", "test" if number % 5 == 0 else "train", Path("x"), labels=labels)
        for number, labels in enumerate(sets)
    ]
    contents = [digest(n // 2) for n in range(100)]
    assert with_thresholds(items, contents, 0.2) == items  # too few images of every label
    split = with_thresholds(items, contents, 0.4)
    assert Counter(item.split for item in split) == {"train": 48, "test": 20, "thresholds": 32}
    sides = {
        (content, item.split) for content, item in zip(contents, split, strict=True) if item.split != "test"
    }
    assert len(sides) == len({content for content, _ in sides})


def test_no_image_is_set_aside_if_no_label_has_enough_images_with_and_without_it() -> None:
    def split(share_of_a: int, count: int = 100) -> Counter[str | None]:
        labels = [("a",) if number < share_of_a else () for number in range(count)]
        items = [Item(str(number), "", "train", Path("x"), labels=each) for number, each in enumerate(labels)]
        contents = [digest(number) for number in range(count)]
        return Counter(item.split for item in with_thresholds(items, contents, 0.4))

    assert split(50) == {"train": 60, "thresholds": 40}
    assert split(100) == {"train": 100}  # all images have the label
    assert split(95) == {"train": 100}  # only two images without the label would be set aside
    assert split(5) == {"train": 100}
