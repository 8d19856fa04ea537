"""Dataset drift in the report, without reports of random variation."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.release_inputs import finished
from helpers.trainer_process import QUICK, trainer
from PIL import Image, ImageEnhance

from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.data.statistics import count_trained, describe_images
from trainer.report.drift import Drift, EarlierRun, exchanged, find_drift
from trainer.runs import find_earlier
from trainer.spec import dump_spec, load_spec
from trainer.storage.store import Store

MEASURES = ("brightness", "contrast", "colourfulness", "warmth", "width", "height", "kilobytes")


def images(random: np.random.Generator, count: int = 500, **shifts: float) -> dict[str, Any]:
    """Return an images.json with normal measures, shifted by `shifts` standard deviations."""
    measures = {name: random.normal(shifts.get(name, 0.0), 1.0, count).tolist() for name in MEASURES}
    return {"images": count, "distinct": count, "contents": [], "measures": measures}


def dataset(**classes: int) -> dict[str, Any]:
    return {"splits": {"train": {"images": sum(classes.values()), "classes": classes}}}


def drift_of(before: dict[str, Any], now: dict[str, Any], then: Any = None, after: Any = None) -> Drift:
    return find_drift(EarlierRun("monday", then or dataset(a=9), before), after or dataset(a=9), now)


def test_random_variation_is_not_reported() -> None:
    pairs = [[images(np.random.default_rng([seed, turn])) for turn in (0, 1)] for seed in range(50)]
    drifts = [drift_of(*pair) for pair in pairs]
    assert sum(any(row.has_changed for row in drift.measures) for drift in drifts) <= 2
    assert drifts[0].sentences[0] == "No image statistic changed significantly."
    # A significant change is not reported if it is too small to matter.
    one, other = (np.random.default_rng(seed) for seed in (1, 2))
    many = drift_of(images(one, 20_000), images(other, 20_000, width=0.1))
    width = next(row for row in many.measures if row.name == "width")
    assert (width.p_value < 1e-4, width.has_changed) == (True, False)


def test_significant_changes_are_described_in_sentences() -> None:
    random = np.random.default_rng(3)
    drift = drift_of(images(random), images(random, brightness=-1.0, width=2.0))
    assert [row.name for row in drift.measures if row.has_changed] == ["brightness", "width"]
    assert drift.sentences[0].startswith("The images are wider (width ")
    assert " and darker (brightness -" in drift.sentences[0]
    assert drift.brief == "brightness and width changed (since monday)"


def test_pixel_statistics_are_not_compared_after_a_change_of_decoding_settings() -> None:
    before, now = (images(np.random.default_rng(seed), brightness=seed, width=seed) for seed in (0, 9))
    drift = find_drift(EarlierRun("monday", dataset(a=9), before, is_decoded_alike=False), dataset(a=9), now)
    assert [row.name for row in drift.measures] == ["width", "height", "kilobytes"]
    assert drift.brief == "width changed (since monday)"
    assert drift.sentences[1].startswith("Brightness and colours are not compared")


def test_change_of_spread_and_of_file_sizes_are_described() -> None:
    random = np.random.default_rng(6)
    before, now = (images(random) for _ in range(2))
    # Half of the images are darker, half brighter; the files are larger.
    now["measures"]["brightness"] = [each + (6 if index % 2 else -6) for index, each in
                                     enumerate(before["measures"]["brightness"])]  # fmt: skip
    now["measures"]["kilobytes"] = [each + 2 for each in now["measures"]["kilobytes"]]
    classes = (dataset(a=60, b=60), dataset(a=30, b=90, c=480))
    described = drift_of(before, now, *classes).sentences[0]
    assert "differently distributed in brightness (" in described
    assert "stored in larger files (kilobytes" in described
    assert "the class a makes up 5% of the images (was 50%)" in described


def test_new_removed_and_larger_classes_are_reported() -> None:
    random = np.random.default_rng(4)
    before, now = images(random), images(random)
    described = drift_of(before, now, dataset(cats=500, dogs=500), dataset(cats=610, dogs=390)).sentences[0]
    assert described == "The class cats makes up 61% of the images (was 50%)."
    described = drift_of(before, now, dataset(cats=500, dogs=500), dataset(cats=510, dogs=490)).sentences[0]
    assert described.startswith("No image statistic")
    described = drift_of(before, now, dataset(cats=500, dogs=9), dataset(cats=500, birds=9)).sentences[0]
    assert described == "The class birds is new; the class dogs was removed."
    drift = drift_of(before, now, dataset(cats=500, dogs=9), dataset(cats=500, birds=9))
    assert drift.brief == "the class birds is new; the class dogs was removed (since monday)"
    assert drift_of(before, now).brief == "no significant change (since monday)"


def sketch(numbers: range, most: int) -> dict[str, Any]:
    keys = sorted(hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in numbers)
    return {"images": len(keys), "distinct": len(keys), "contents": keys[:most], "measures": {}}


def test_shares_of_new_and_removed_images_are_exact_or_estimated() -> None:
    assert exchanged(sketch(range(100), 2000), sketch(range(25, 125), 2000)) == (0.25, 0.25)
    assert exchanged(sketch(range(100), 2000), sketch(range(150), 2000)) == (pytest.approx(1 / 3), 0.0)
    for before, now in ((range(20_000), range(5_000, 30_000)), (range(3_000), range(2_500, 40_000))):
        new, removed = exchanged(sketch(before, 2000), sketch(now, 2000))
        both = len(set(before) & set(now))
        assert new == pytest.approx(1 - both / len(now), abs=0.03)
        assert removed == pytest.approx(1 - both / len(before), abs=0.09 if len(before) < 5_000 else 0.03)
    assert exchanged({}, sketch(range(9), 9)) == (None, None)
    # A dataset that only grew has lost nothing, even if few of its images are listed.
    for before, now in ((10_000, 10_500), (1_900, 2_500), (1_000, 10_000), (500, 5_000)):
        new, removed = exchanged(sketch(range(before), 2000), sketch(range(now), 2000))
        assert removed == 0.0
        assert new == pytest.approx(1 - before / now, abs=0.03)
    assert exchanged(sketch(range(300), 2000), sketch(range(30_000), 2000))[1] is None  # too few to estimate


def test_estimated_shares_are_marked_as_approximate() -> None:
    sentences = [
        drift_of(sketch(range(before), 2000), sketch(range(now), 2000)).sentences[-1]
        for before, now in ((1_000, 2_000), (1_500, 3_000), (300, 30_000))
    ]
    assert sentences[0] == "50.0% of the images are new, and 0.0% of the earlier images were removed."
    assert re.fullmatch(
        r"About \d+\.\d% of the images are new, and about 0\.0% of the .* removed\.", sentences[1]
    )
    assert re.fullmatch(r"About 9\d\.\d% of the images are new\.", sentences[2])


def test_statistics_of_distinct_images_are_computed(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(data / "discs" / "0.png", data / "discs" / "copy.png")
    (data / "squares" / "1.png").unlink()
    Image.new("RGB", (80, 20), (0, 0, 255)).save(data / "squares" / "blue.png")
    spec = load_spec(overrides={"data.source": str(data)}, settings=["data.image_size=16"])
    data_set = load_dataset(spec.data, tmp_path / "cache", SilentProgress(), lambda rejected: None)
    described = describe_images(data_set)
    assert (described["images"], described["distinct"]) == (25, 24)
    assert {name: len(values) for name, values in described["measures"].items()} == dict.fromkeys(
        MEASURES, 24
    )
    assert described["measures"]["warmth"][0] == -1.0
    assert described["measures"]["brightness"][0] == pytest.approx(0.0722, abs=1e-4)
    assert (max(described["measures"]["width"]), min(described["measures"]["height"])) == (80, 20)
    few = describe_images(data_set, most=10)
    assert few["contents"] == described["contents"][:10]
    everything = [content for split in data_set.splits.values() for content in split.contents]
    trained = len(data_set.train.items)
    assert count_trained(everything, described) == (trained, 25)
    assert count_trained(data_set.held_out.contents, described) == (0, 25 - trained)
    seen, checked = count_trained(everything, few)
    assert 10 <= seen <= checked < 25  # only hashes up to the last of the ten can be checked
    assert count_trained(everything, {"images": 3}) == (0, 0)  # written by an earlier version
    (data / "squares" / "2.png").unlink()  # removed after decoding
    assert len(describe_images(data_set)["measures"]["width"]) == 23


def test_statistics_of_large_images_are_computed_in_small_batches(photos: Path, tmp_path: Path) -> None:
    spec = load_spec(overrides={"data.source": str(photos)}, settings=["data.image_size=1024"])
    data_set = load_dataset(spec.data, tmp_path, SilentProgress(), lambda rejected: None)
    requested = []

    class RecordedPixels:
        shape = data_set.train.pixels.shape

        def gather(self, rows: Any) -> Any:
            requested.append(len(rows))
            return data_set.train.pixels.gather(rows)

    watched = replace(
        data_set, splits=data_set.splits | {"train": replace(data_set.train, pixels=RecordedPixels())}
    )
    assert describe_images(watched) == describe_images(data_set)
    assert max(requested) == (16 << 20) // (1024 * 1024 * 3)
    assert sum(requested) == len(data_set.train.labels)


def test_data_are_compared_with_the_newest_run_of_the_same_source(
    either_store: Store, tmp_path: Path
) -> None:
    spec = load_spec(overrides={"data.source": "photos"})
    assert find_earlier(either_store, spec, "new") is None
    finished(either_store, tmp_path / "local", "monday")
    assert find_earlier(either_store, spec, "new") is None  # this run has no dataset.json
    monday = either_store.below("monday")
    monday.write("dataset.json", json.dumps({"digest": "sha256:old"}).encode())
    monday.write("spec.yaml", dump_spec(spec).encode())
    assert find_earlier(either_store, spec, "old") is None
    assert find_earlier(either_store, load_spec(overrides={"data.source": "others"}), "new") is None
    for damaged in (None, b"{", b"[]", b"\xff", b'{"distinct": 3}', b'{"images": 3, "measures": [1]}',
                    b'{"images": 3, "measures": {"width": ["a"]}}'):  # fmt: skip
        if damaged is not None:
            monday.write("images.json", damaged)
        earlier = find_earlier(either_store, spec, "new")
        assert earlier is not None
        assert (earlier.name, dict(earlier.images)) == ("monday", {})
    same = replace(earlier, dataset=dataset(a=3))
    drift = find_drift(same, dataset(a=3), images(np.random.default_rng(0)))
    only_counts = "Only counts can be compared, because the run monday has no images.json."
    assert drift.sentences == (only_counts,)
    assert drift.brief == "only counts can be compared (since monday)"
    assert find_drift(earlier, dataset(a=3), {}).sentences == ("The class a is new.", only_counts)
    monday.write("images.json", json.dumps(images(np.random.default_rng(0))).encode())
    written = monday.read("dataset.json")
    assert written is not None
    for other in (b'{"splits": []}', b'{"splits": {"train": {"classes": {"a": "x"}}}}', b'{"rejected": 3}'):
        monday.write("dataset.json", other)
        assert find_earlier(either_store, spec, "new") is None
    monday.write("dataset.json", b'{"digest": "sha256:old", "images": ["caf\\udce9.png"]}')
    assert find_earlier(either_store, spec, "new") is not None  # a file name need not be valid UTF-8
    monday.write("dataset.json", written.data)
    others = ("data.image_size=16", "data.resize=crop", "data.interpolation=bicubic")
    for setting, is_alike in (("seed=3", True), *((other, False) for other in others)):
        earlier = find_earlier(either_store, load_spec(None, None, (setting, "data.source=photos")), "new")
        assert earlier is not None
        assert earlier.is_decoded_alike == is_alike, setting


@pytest.mark.engine
def test_report_shows_how_the_data_changed(photos: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")

    def report(name: str) -> tuple[str, str]:
        words = ["--data", data, "--output", tmp_path / "runs", "--run-name", name, "--set", "train.epochs=1"]
        done = trainer("train", *QUICK, *words, cache=tmp_path / "cache")
        assert done.returncode == 0, done.stderr
        return done.stdout, (tmp_path / "runs" / name / "report.html").read_text()

    described, page = report("monday")
    assert "Changes in the data" not in page
    for path in data.rglob("*.png"):
        ImageEnhance.Brightness(Image.open(path)).enhance(0.3).save(path)
    described, page = report("tuesday")
    assert "brightness" in next(line for line in described.splitlines() if line.startswith("drift "))
    assert "Compared with the run monday. The images are" in page
    assert "100.0% of the images are new, and 100.0% of the earlier images were removed." in page
    assert (tmp_path / "runs" / "tuesday" / "plots" / "drift.png").stat().st_size > 10_000
    described, page = report("wednesday")  # with the data of tuesday
    assert "Changes in the data" not in page
    assert "drift " not in described
