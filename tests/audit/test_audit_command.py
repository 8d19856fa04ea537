"""`trainer audit`: planted faults of a small data set, the page, the table of suspects, and odd sources."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bucket_server import BUCKET, bucket_server
from helpers.small_data import load, two_splits
from helpers.small_shards import pack
from PIL import Image, ImageDraw, ImageOps

from trainer.audit.audit import audit_images, join_splits
from trainer.audit.summary import audit_json, summarize_audit
from trainer.cli.audit import audit_command
from trainer.data.load import load_splits
from trainer.data.progress import SilentProgress
from trainer.errors import DataError, UsageError
from trainer.spec.schema import DataSpec
from trainer.storage import open_store

SIDE = 96
PLANTED = {"wrong": "train/discs/wrong.png", "mirrored": "validation/discs/mirrored.png"}


def draw(name: str, seed: int) -> Image.Image:
    """Draw discs or stripes on a soft random background."""
    chance = np.random.default_rng([seed, len(name)])
    layers = [
        Image.fromarray(chance.integers(60, 255, (side, side, 3), np.uint8)).resize((SIDE, SIDE))
        for side in (4, 11)
    ]
    image = Image.blend(*layers, 0.5)
    pen, ink = ImageDraw.Draw(image), tuple(map(int, chance.integers(0, 70, 3)))
    left, top, size = map(int, chance.integers(5, 45, 3))
    size += 20
    if name == "discs":
        pen.ellipse((left, top, left + size, top + size), fill=ink)
    else:
        for offset in range(0, size, 10):
            pen.rectangle((left, top + offset, left + size, top + offset + 4), fill=ink)
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two splits of discs and stripes with a wrong label, a mirrored copy and a blank image."""
    root = tmp_path_factory.mktemp("audit") / "shapes"
    for split, count in (("train", 24), ("validation", 8)):
        for name in ("discs", "stripes"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = draw(name, number + 1000 * (split == "validation"))
                image.save(root / split / name / f"{number:02}.png")
    draw("stripes", 99).save(root / PLANTED["wrong"])
    ImageOps.mirror(draw("discs", 3)).save(root / PLANTED["mirrored"])
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(root / "train" / "stripes" / "blank.png")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit-cache")


def test_planted_faults_are_named_and_the_table_of_suspects_is_accepted(
    root: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "audit.html", tmp_path / "suspects.csv"
    audit_command(str(root), cache, str(page), str(table))
    text = capsys.readouterr().out
    assert "67 images, 2 classes" in text
    assert f"{PLANTED['wrong']} looks like stripes" in text
    assert "near-duplicates  1 group" in text
    assert f"train/discs/03.png = {PLANTED['mirrored']} (mirrored); 1 in several splits" in text
    assert f"--set data.exclude={table}" in text
    assert all(len(line) < 200 for line in text.splitlines())
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    first = (rows[0]["path"], rows[0]["label"], rows[0]["new_label"])
    assert first == (PLANTED["wrong"], "discs", "stripes")
    html = page.read_text()
    assert html.count("<img ") >= 4
    assert PLANTED["wrong"].rpartition("/")[2] in html
    assert "<script" not in html
    cleaned = load(root, cache, image_size=SIDE, exclude=str(table))
    assert PLANTED["wrong"] not in {item.name for item in cleaned.train.items}
    corrected = load(root, cache, image_size=SIDE, relabel=str(table))
    names = [item.name for item in corrected.train.items]
    assert corrected.train.labels[names.index(PLANTED["wrong"])] == 1


def test_json_lists_the_findings(root: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit_command(str(root), cache, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 67
    assert result["label_errors"][0]["path"] == PLANTED["wrong"]
    assert result["near_duplicates"] == [
        {"paths": ["train/discs/03.png", PLANTED["mirrored"]], "difference": "mirrored"}
    ]
    assert {"train/stripes/blank.png"} <= {image["path"] for image in result["odd_images"]}


def audited(source: Path, cache: Path, **settings: Any) -> dict[str, Any]:
    spec = DataSpec(source=str(source), image_size=64, **settings)
    splits, class_names, _ = load_splits(spec, cache, SilentProgress())
    audit = audit_images(join_splits(splits, class_names), spec.max_image_pixels, SilentProgress())
    assert summarize_audit(audit)
    return audit_json(audit)


def test_without_features_labels_are_not_checked_and_copies_are_found(root: Path, cache: Path) -> None:
    result = audited(root, cache)
    assert result["label_errors"] is None
    assert [len(group["paths"]) for group in result["near_duplicates"]] == [2]


def test_one_class_three_pictures_and_shards_are_audited(root: Path, tmp_path: Path, cache: Path) -> None:
    few = tmp_path / "few"
    for number in range(3):
        (few / "discs").mkdir(parents=True, exist_ok=True)
        draw("discs", number).save(few / "discs" / f"{number}.png")
    result = audited(few, cache)
    assert result["images"] == 3
    assert result["class_names"] == ["discs"]
    assert result["shortcuts"] is None
    pack(two_splits(tmp_path / "data"), str(tmp_path / "shards"), tmp_path / "cache")
    assert audited(tmp_path / "shards", cache)["images"] == 18


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with bucket_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        yield f"gs://{BUCKET}"


def test_bucket_is_audited_and_the_page_is_written_to_it(
    bucket: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(f"{bucket}/shapes")
    for path in sorted((root / "validation").rglob("*.png")):
        store.write(path.relative_to(root / "validation").as_posix(), path.read_bytes())
    audit_command(f"{bucket}/shapes", tmp_path, f"{bucket}/pages/audit.html")
    assert "17 images, 2 classes" in capsys.readouterr().out
    assert open_store(f"{bucket}/pages").read("audit.html") is not None


def test_settings_and_outputs_that_do_not_fit_are_refused(root: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be changed for an audit"):
        audit_command(str(root), cache, settings=["data.image_size=64"])
    with pytest.raises(UsageError, match="--html requires"):
        audit_command(str(root), cache, str(tmp_path / "audit.txt"))
    with pytest.raises(DataError, match="no such folder"):
        audit_command(str(tmp_path / "missing"), cache)
