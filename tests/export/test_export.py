"""SavedModel export: the predictions of the trained model for every image format, or an error."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import requests
import tensorflow as tf
from helpers.small_disk import small_disk
from helpers.tensorflow_serving import tensorflow_serving
from PIL import Image

from trainer.data.decode import decode_and_resize
from trainer.errors import DataError, TemporaryError, TrainerError, UsageError
from trainer.export import Golden, export_model, load_model, verify_export
from trainer.model import build_inference_model
from trainer.spec import load_spec

SIDES = (24, 20)
CLASS_NAMES = ("cats", "ação", "дом")
DATA = load_spec(
    settings=[f"data={{image_size: {list(SIDES)}, resize: crop, crop_fraction: 0.9, interpolation: bicubic}}"]
).data


def encoded(kind: str, mode: str = "RGB", times: int = 1, **options: Any) -> bytes:
    """Return an image of 40 x 30, or `times` larger, with a bright corner that shows its orientation."""
    pixels = np.full((30, 40, 3), 90, np.uint8)
    pixels[:12, :20] = (250, 200, 10)
    pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
    file = io.BytesIO()
    # An adaptive palette preserves both colours.
    Image.fromarray(pixels).convert(mode, palette=Image.Palette.ADAPTIVE).save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PICTURES = {
    "jpeg": encoded("JPEG"),
    "grey jpeg": encoded("JPEG", "L"),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    "progressive jpeg": encoded("JPEG", progressive=True),
    "turned jpeg": encoded("JPEG", exif=turned()),
    "large jpeg": encoded("JPEG", times=11),
    "large turned jpeg": encoded("JPEG", times=11, exif=turned()),
    "png": encoded("PNG"),
    "palette png": encoded("PNG", "P"),
    "png with alpha": encoded("PNG", "RGBA"),
    "webp": encoded("WEBP", lossless=True),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    spec = load_spec(settings=["model={family: residual, stem_filters: 4, filters: [8], blocks: [1]}"])
    return build_inference_model(spec.model, len(CLASS_NAMES), SIDES)


@pytest.fixture(scope="module")
def golden(model: keras.Model) -> Golden:
    images = tuple(PICTURES.values())
    pixels = np.stack([decode_and_resize(tf.constant(each), DATA.pixel_format) for each in images])
    answers = tf.nn.softmax(model(pixels.astype(np.float32), training=False)).numpy()
    return Golden(images, pixels.astype(np.float32), answers)


@pytest.fixture(scope="module")
def exported(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model"
    export_model(path, model, CLASS_NAMES, DATA)
    return path


def test_served_predictions_match_training_for_every_image_format(exported: Path, golden: Golden) -> None:
    served = tf.saved_model.load(str(exported)).signatures["serving_default"]
    together = served(image_bytes=tf.constant(list(golden.images)))
    np.testing.assert_allclose(together["probabilities"], golden.probabilities, atol=1e-5)
    by_name = dict(zip(PICTURES, golden.pixels, strict=True))
    assert np.abs(by_name["turned jpeg"] - by_name["jpeg"]).max() > 50  # turned upright before inference
    assert np.abs(by_name["large turned jpeg"] - by_name["turned jpeg"]).mean() < 8
    for name in ("webp", "bmp", "palette png", "png with alpha", "gif"):
        assert np.abs(by_name[name] - by_name["png"]).max() <= 8, name


def test_outputs_are_label_probability_and_probabilities(exported: Path, golden: Golden) -> None:
    from_bytes = tf.saved_model.load(str(exported)).signatures["serving_default"](
        image_bytes=tf.constant(list(golden.images))
    )
    from_pixels = tf.saved_model.load(str(exported)).signatures["pixels"](pixels=tf.constant(golden.pixels))
    assert set(from_bytes) == {*from_pixels, "error"}
    for answer in (from_bytes, from_pixels):
        assert set(from_pixels) == {"label", "probability", "probabilities"}
        best = golden.probabilities.argmax(axis=1)
        assert [each.decode() for each in answer["label"].numpy()] == [CLASS_NAMES[index] for index in best]
        np.testing.assert_allclose(answer["probability"], golden.probabilities.max(axis=1), atol=1e-5)
        np.testing.assert_allclose(answer["probabilities"].numpy().sum(axis=1), 1.0, atol=1e-5)
    labels = (exported / "assets" / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == list(CLASS_NAMES)
    assert load_model(exported).class_names == CLASS_NAMES


def test_model_serves_requests_of_tensorflow_serving(exported: Path, golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "models" / "pets").mkdir(parents=True)
    (tmp_path / "models" / "pets" / "1").symlink_to(exported)
    rows = [{"b64": base64.b64encode(each).decode()} for each in golden.images]
    with tensorflow_serving(tmp_path / "models") as address:

        def post(code: int = 200, model: str = "pets", **body: Any) -> Any:
            answer = requests.post(f"{address}/v1/models/{model}:predict", json=body, timeout=60)
            assert answer.status_code == code, answer.text
            return answer.json()

        predictions = post(instances=[{"image_bytes": row} for row in rows])["predictions"]
        assert predictions == post(instances=rows)["predictions"]  # the name of the only input is optional
        np.testing.assert_allclose(
            [row["probabilities"] for row in predictions], golden.probabilities, atol=1e-5
        )
        assert {row["label"] for row in predictions} <= set(CLASS_NAMES)  # plain text, not base64
        columns = post(inputs={"image_bytes": rows})["outputs"]
        assert columns["label"] == [row["label"] for row in predictions]
        pixels = post(signature_name="pixels", instances=golden.pixels[:2].tolist())["predictions"]
        np.testing.assert_allclose(pixels[1]["probabilities"], golden.probabilities[1], atol=1e-5)
        bad = post(instances=[{"b64": base64.b64encode(b"no picture").decode()}, rows[0]])["predictions"]
        assert [row["error"] for row in bad] == ["not a JPEG, PNG, GIF, BMP or WebP image", ""]
        assert bad[0]["label"] == ""
        assert bad[1] == predictions[0]
        assert "error" in post(400, instances=[{"picture": rows[0]}])
        assert "error" in post(400, model="cats", instances=rows)


def test_model_with_inconsistent_description_is_rejected(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_model(tmp_path / "none")
    copy = shutil.copytree(exported, tmp_path / "copy")
    description = copy / "assets" / "model.json"
    about = json.loads(description.read_text())
    assert load_model(copy).data.pixel_format == DATA.pixel_format
    later = ("crop_fraction", "max_image_pixels")  # not written by earlier versions
    description.write_text(json.dumps({key: value for key, value in about.items() if key not in later}))
    assert load_model(copy).data.pixel_format == DATA.pixel_format._replace(crop_fraction=1.0)
    for message, changed in (
        ("damaged", {**about, "resize": "pad"}),  # crop_fraction requires resize: crop
        ("damaged", {**about, "interpolation": "best"}),
        ("format 99", {**about, "format_version": 99}),
        ("damaged", {**about, "class_names": ["one"]}),
        ("damaged", {**about, "image_size": 64}),
        ("damaged", {**about, "class_names": ["a", "b", "b"]}),
        ("damaged", {**about, "max_image_pixels": "many"}),
        ("damaged", {**about, "image_size": "wide"}),
        ("damaged", {"format_version": about["format_version"]}),
        ("not exported by trainer", {}),
    ):
        description.write_text(json.dumps(changed))
        with pytest.raises(DataError if message == "damaged" else UsageError, match=message):
            load_model(copy)
    description.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="not exported by trainer"):
        load_model(copy)
    description.unlink()
    with pytest.raises(UsageError, match="not exported by trainer"):
        load_model(copy)


@pytest.mark.engine
def test_export_with_different_predictions_is_rejected(
    exported: Path, golden: Golden, tmp_path: Path
) -> None:
    wrong = golden.probabilities.copy()
    wrong[3, 0] += 2e-5
    with pytest.raises(TrainerError, match=r"differs by 2(\.\d+)?e-05, at most 1e-05"):
        verify_export(exported, replace(golden, probabilities=wrong))
    with pytest.raises(TrainerError, match="cannot be loaded in a fresh process"):
        verify_export(tmp_path, golden)


def test_full_temporary_disk_is_reported_and_leaves_the_export_unchanged(
    model: keras.Model, golden: Golden, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(exported.rglob("*"))
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        named = rf"folder for temporary files is full: {disk}\. .*TMPDIR.*Received: No space left"
        with pytest.raises(TemporaryError, match=named):
            verify_export(exported, replace(golden, images=golden.images * 9))
        with pytest.raises(TemporaryError, match=named):
            export_model(tmp_path / "model", model, CLASS_NAMES * 9999, DATA)
        assert list(disk.iterdir()) == []
    assert sorted(exported.rglob("*")) == before
    assert not (tmp_path / "model").exists()
