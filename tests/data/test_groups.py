"""Groups of images that belong together: where they come from, the split and the folds."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_data import digests, load, png, put
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.items import Item
from trainer.data.split import assign_splits
from trainer.errors import DataError, UsageError
from trainer.spec import load_spec
from trainer.training.probe import assign_folds


def grouped_items(seed: int, labels: int = 3, groups: int = 40) -> tuple[list[Item], list[str]]:
    """Return items in groups of 1 to 12 images that mostly have one label."""
    chance = random.Random(seed)
    items = []
    for group in range(groups):
        label = group % labels
        for _ in range(chance.randint(1, 12)):
            own = label if chance.random() < 0.9 else chance.randrange(labels)
            items.append(Item(str(len(items)), f"class {own}", None, Path("x"), group=f"video {group}"))
    return items, digests(*((seed, number) for number in range(len(items))))


def sides(items: list[Item]) -> dict[str, set[str]]:
    result = defaultdict(set)
    for item in items:
        result[item.group or item.name].add(item.split or "")
    return result


@pytest.mark.parametrize("is_multi", [False, True])
def test_groups_are_on_one_side_and_every_label_has_about_its_share(is_multi: bool) -> None:
    for seed in range(20):
        items, contents = grouped_items(seed)
        split = assign_splits(items, contents, 0.2, is_multi)
        assert all(len(names) == 1 for names in sides(split).values())
        for label in {item.label for item in items}:
            members = [item for item in split if item.label == label]
            share = sum(item.split == "validation" for item in members) / len(members)
            assert 0.05 < share < 0.4


def test_split_of_a_group_does_not_depend_on_the_order_of_the_images() -> None:
    items, contents = grouped_items(1)
    pairs = list(zip(items, contents, strict=True))
    random.Random(0).shuffle(pairs)
    shuffled = assign_splits([item for item, _ in pairs], [content for _, content in pairs], 0.2)
    assert sides(shuffled) == sides(assign_splits(items, contents, 0.2))


def test_groups_with_an_equal_image_are_on_one_side() -> None:
    items, contents = grouped_items(2)
    last = {item.group: row for row, item in enumerate(items)}
    rows = sorted(last.values())
    for one, other in itertools.pairwise(rows):
        contents[other] = contents[one]
    # All groups are connected, so the images cannot be split; a single group is never held out.
    assert {item.split for item in assign_splits(items, contents, 0.2)} == {"train"}


def test_two_groups_of_a_label_are_on_both_sides() -> None:
    items = [Item(str(n), f"{n % 2}", None, Path("x"), group=f"{n % 4}") for n in range(40)]
    split = assign_splits(items, digests(*range(40)), 0.1)
    for label in "01":
        assert {item.split for item in split if item.label == label} == {"train", "validation"}


def test_folds_keep_groups_together_and_every_class_in_training() -> None:
    items, _ = grouped_items(3, labels=4, groups=30)
    labels = np.array([int(item.label[-1]) for item in items])
    groups = np.unique([item.group or "" for item in items], return_inverse=True)[1]
    fold = assign_folds(labels, 5, groups)
    assert {len(set(fold[groups == group])) for group in range(30)} == {1}
    for number in range(5):
        assert set(labels[fold != number]) == set(labels)
    alone = np.append(labels, [9, 9]), np.append(groups, [99, 99])
    assert set(assign_folds(alone[0], 5, alone[1])[-2:]) == {-1}


def test_classes_smaller_than_the_number_of_folds_have_fewer_folds() -> None:
    labels, groups = np.repeat(np.arange(10), 3), np.arange(30) // 2
    assert set(assign_folds(labels, 5, groups).tolist()) <= {-1, 0, 1, 2}


def test_unlabelled_images_are_on_both_sides() -> None:
    items = [
        Item(str(n), label, None, Path("x"), labels=(label,) if label else (), group=f"{n // 2}")
        for n in range(120)
        for label in ("cat" if n % 3 else "",)
    ]
    split = assign_splits(items, digests(*range(120)), 0.2, is_multi=True)
    shares = [item.split == "validation" for item in split if not item.labels]
    assert 0.05 < sum(shares) / len(shares) < 0.4


def write_videos(root: Path, count: int = 6) -> Path:
    for label in ("cats", "dogs"):
        for video in range(count):
            for frame in range(3):
                seed = hash((label, video, frame)) % 10_000
                put(root / label / f"v{video}_{frame}.png", png(seed))
    return root


def videos(dataset: Dataset) -> dict[str, set[str]]:
    names = defaultdict(set)
    for split in dataset.splits.values():
        for item in split.items:
            names[item.name.rpartition("_")[0]].add(split.name)
    return names


def test_pattern_on_names_keeps_the_frames_of_a_video_together(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "data")
    grouped = videos(load(root, tmp_path / "cache", group="name:(.*)_"))
    assert all(len(splits) == 1 for splits in grouped.values())
    assert any(len(splits) == 2 for splits in videos(load(root, tmp_path / "cache")).values())


def test_column_of_a_table_keeps_a_patient_together(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "data")
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    rows = [f"{name},{name[:4]},{name[5:7]}" for name in names]
    put(root / "table.csv", "\n".join(["path,label,patient", *rows, ""]).encode())
    dataset = load(root, tmp_path / "cache", group="column:patient")
    patients = defaultdict(set)
    for split in dataset.splits.values():
        for item in split.items:
            patients[item.name[5:7]].add(split.name)
    assert len(patients) == 6
    assert all(len(splits) == 1 for splits in patients.values())
    with pytest.raises(DataError, match=r"no column .* path, label, patient"):
        load(root, tmp_path / "cache", group="column:person")


def test_exif_date_and_near_duplicates_are_groups(tmp_path: Path) -> None:
    random_pixels = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        for number in range(12):
            small = Image.fromarray(random_pixels.integers(0, 256, (6, 6, 3), np.uint8))
            image, exif = small.resize((96, 96), Image.Resampling.BICUBIC), Image.Exif()
            exif.get_ifd(0x8769)[0x9003] = f"2026:01:{1 + number // 3:02} 10:00:{number:02}"
            path = tmp_path / "data" / label / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, exif=exif)
            image.resize((60, 60)).save(path.with_suffix(".png"))
    by_date = load(tmp_path / "data", tmp_path / "cache", group="exif:date", image_size=64)
    items = [(item.name, split.name) for split in by_date.splits.values() for item in split.items]
    day = {name[:7]: split for name, split in items if name.endswith(".jpg")}
    for label in ("cats", "dogs"):
        for first in range(0, 12, 3):
            assert len({day[f"{label}/{number:02}"] for number in range(first, first + 3)}) == 1
    assert any("24 of 48 images have no group" in warning for warning in by_date.warnings)
    copies = load(tmp_path / "data", tmp_path / "cache", group="duplicates", image_size=64)
    pairs = defaultdict(set)
    for split in copies.splits.values():
        for item in split.items:
            pairs[item.name[:7]].add(split.name)
    assert len(pairs) == 24
    assert all(len(splits) == 1 for splits in pairs.values())


def test_groups_across_the_splits_of_the_source_are_a_warning(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "data" / "train")
    for label in ("cats", "dogs"):
        put(root.parent / "validation" / label / "v0_9.png", png(len(label) * 777 + ord(label[0])))
    dataset = load(root.parent, tmp_path / "cache", group="name:[a-z]+/v[0-9]+")
    assert (
        "2 groups have images in several splits of the source, such as cats/v0, dogs/v0" in dataset.warnings
    )


def test_group_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches no image"):
        load(write_videos(tmp_path / "data"), tmp_path / "cache", group="name:patient-([0-9]+)")


@pytest.mark.parametrize("value", ["name", "name:", "name:(", "exif:shutter", "patient", "column:"])
def test_invalid_groups_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"data\.group is not valid"):
        load_spec(text=f"data: {{group: '{value}'}}")


def test_group_setting_is_part_of_the_spec(tmp_path: Path) -> None:
    settings: list[Any] = ["data.group=name:(.*)_[0-9]+"]
    assert load_spec(settings=settings).data.group == "name:(.*)_[0-9]+"
