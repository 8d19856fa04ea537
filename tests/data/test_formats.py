"""Images of every format in a dataset: used, converted or reported, whatever the file names."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from helpers.image_kinds import encoded
from helpers.small_data import SIZE, load, png, put
from helpers.small_shards import pixels_by_name, process_of
from PIL import Image

from trainer.cli.bootstrap import import_tensorflow
from trainer.data.bucket import FOLDER, can_be_placeholder, download_placeholders, write_placeholders
from trainer.data.items import Rejection
from trainer.data.load import load_labelled
from trainer.data.progress import SilentProgress
from trainer.data.readers import read_layout
from trainer.data.readers.import_files import Buckets
from trainer.data.shards.index import read_shard_manifest
from trainer.data.shards.worker_pool import WorkerPool
from trainer.data.shards.writer import make_shards
from trainer.errors import DataError
from trainer.evaluate.predict import find_pictures
from trainer.spec.schema import DataSpec
from trainer.storage import open_store

ENDINGS = (".jfif", ".mpo", ".jpg_large", ".jpg?w=300", ".jpg.1", ".HEIC", "", ".txt")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return Image.fromarray(pixels)


def heic(seed: int) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture(seed).resize((64, 64))).save(buffer, quality=-1)
    return buffer.getvalue()


def of_a_phone(root: Path) -> Path:
    """Write two classes of four PNGs, plus two TIFFs, a HEIC, a Photoshop and a JSON file."""
    for label in range(2):
        for seed in range(4):
            put(root / "ab"[label] / f"{seed}.png", png(10 * label + seed))
    for seed in (50, 51):
        put(root / "a" / f"{seed}.tif", encoded(picture(seed), "TIFF"))
    put(root / "b" / "named.jpg", heic(60))
    put(root / "b" / "layers.psd", b"8BPS\0\1" + b"\0" * 40)
    put(root / "b" / "1.json", b'{"boxes": []}')
    return root


def test_jpeg_is_detected_whatever_its_extension(tmp_path: Path) -> None:
    for label in range(2):
        for seed, ending in enumerate(ENDINGS):
            put(tmp_path / str(label) / f"{seed}{ending}", encoded(picture(10 * label + seed), "JPEG"))
            put(tmp_path / str(label) / f"{seed}.xml", b"<annotation/>")
            put(tmp_path / str(label) / ".DS_Store", b"\0\0\0\1Bud1")
    dataset = load(tmp_path, tmp_path.parent / "cache", max_rejected=0.0)
    assert sum(len(split.items) for split in dataset.splits.values()) == 2 * len(ENDINGS)
    assert {(rejection.reason, rejection.damaged) for rejection in dataset.rejected} == {
        ("not an image type: .xml", False)
    }
    assert (dataset.summary["converted"], dataset.warnings) == ({}, ())


def test_converted_and_unsupported_images_are_counted(tmp_path: Path) -> None:
    root = of_a_phone(tmp_path / "data")
    dataset = load(root, tmp_path / "cache", max_rejected=0.1)
    assert dataset.summary["converted"] == {"HEIC": 1, "TIFF": 2}
    assert [rejection for rejection in dataset.rejected if rejection.damaged] == [
        Rejection("b/layers.psd", "unsupported format: Photoshop")
    ]
    first, second = dataset.warnings
    assert first.startswith("1 HEIC file and 2 TIFF files were converted before decoding; the exported")
    assert second == "1 Photoshop file cannot be decoded: convert them to JPEG or PNG"
    assert json.loads(json.dumps(dataset.summary))["warnings"] == [first, second]
    with pytest.raises(DataError, match=r"1 of 12 images cannot be used: b/layers.psd .* Photoshop file"):
        load(root, tmp_path / "cache")


def test_heic_without_its_plugin_is_rejected_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = of_a_phone(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"1 HEIC file and 1 Photoshop file cannot be decoded: install a"):
        load(root, tmp_path / "cache")
    warning = load(root, tmp_path / "cache", max_rejected=0.2).warnings[1]
    assert "(pip install 'trainer[heif]'), or convert them to JPEG or PNG" in warning


def test_evaluation_reports_converted_images(tmp_path: Path) -> None:
    messages: list[str] = []

    class Recorder(SilentProgress):
        def on_message(self, message: str) -> None:
            messages.append(message)

    root, spec = of_a_phone(tmp_path / "data"), DataSpec(image_size=SIZE, max_rejected=0.1)
    spec = spec.model_copy(update={"source": str(root)})
    load_labelled(spec, ["a", "b"], tmp_path / "cache", Recorder())
    assert messages[0].startswith("1 HEIC file and 2 TIFF files were converted before decoding; ")
    assert messages[1].startswith("1 Photoshop file cannot be decoded")


def test_placeholders_are_detected_by_their_names(tmp_path: Path) -> None:
    data = encoded(picture(1), "JPEG")
    names = [f"{label}/{number}{ending}" for label in "ab" for number, ending in enumerate(ENDINGS)]
    for name in names:
        put(tmp_path / "bucket" / name, data)
    store, folder = open_store(str(tmp_path / "bucket")), tmp_path / "cache" / FOLDER / "one"
    entries = [entry for entry in store.entries() if can_be_placeholder(entry.name)]
    assert {entry.name for entry in entries} == {name for name in names if not name.endswith((".txt", "6"))}
    write_placeholders(store, entries, folder)
    read = read_layout(folder, "folders", Buckets(lambda uris: {}))
    assert (len(read.items), read.rejections) == (len(entries), [])
    (brought := tmp_path / "brought").mkdir()
    assert {item.read() for item in download_placeholders(read.items, tmp_path / "cache", brought)} == {data}


@pytest.mark.engine
def test_packed_images_can_be_decoded_by_the_model(tmp_path: Path) -> None:
    root, cache = of_a_phone(tmp_path / "data"), tmp_path / "cache"
    spec = DataSpec(source=str(root), image_size=SIZE, max_rejected=0.1)
    store = open_store(str(tmp_path / "shards"))
    with WorkerPool(1, cache, import_tensorflow, executor=process_of(0)) as pool:
        made = make_shards(spec, store, 1 << 20, pool, SilentProgress())
    assert made is not None
    assert made == read_shard_manifest(store)
    assert made.summary["converted"] == {"HEIC": 1, "TIFF": 2}
    packed, plain = load(tmp_path / "shards", cache), load(root, cache, max_rejected=0.1)
    assert pixels_by_name(packed) == pixels_by_name(plain)
    assert {item.read()[:4] for split in packed.splits.values() for item in split.items} == {b"\x89PNG"}


def test_prediction_finds_the_images_of_a_folder(tmp_path: Path) -> None:
    root = of_a_phone(tmp_path)
    images, rejections = find_pictures([root])
    assert len(images) == 12
    assert [(Path(rejection.name).name, rejection.reason) for rejection in rejections] == [
        ("1.json", "not an image type: .json")
    ]
