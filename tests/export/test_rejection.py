"""Exported models that reject images: signatures, bad images, earlier versions, and a fresh process."""

from __future__ import annotations

import io
import json
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer.cli.predict import predict_command
from trainer.data.decode import count_gif_pixels, decode_and_resize
from trainer.data.decode_batch import declared_sides, decode_batch
from trainer.data.header import declared_size, gif_frames
from trainer.errors import TrainerError
from trainer.evaluate.unknown import fit_detector
from trainer.export import Confidence, Golden, export_model, load_model, verify_export
from trainer.export.golden import make_golden
from trainer.export.load import require_computing
from trainer.model import build_inference_model
from trainer.model.features import build_feature_model
from trainer.spec import RunSpec, load_spec

SIDE = 24
CLASSES = ("cats", "dogs")
SPEC = load_spec(
    settings=[
        f"data.image_size={SIDE}",
        "data.max_image_pixels=100000",
        "model={family: residual, stem_filters: 4, filters: [8], blocks: [1], average_mirror: true}",
    ]
)


def encoded(kind: str = "JPEG", seed: int = 0, size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def huge_jpeg() -> bytes:
    """Return a JPEG whose header declares 20000 x 14000 pixels."""
    data = bytearray(encoded())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 14_000, 20_000)
    return bytes(data)


def huge_png() -> bytes:
    data = bytearray(encoded("PNG"))
    data[16:24] = struct.pack(">II", 20_000, 14_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def confidence_of(spec: RunSpec, model: keras.Model) -> Confidence:
    both = build_feature_model(model)
    pixels = np.random.default_rng(0).integers(60, 190, (60, SIDE, SIDE, 3)).astype(np.float32)
    features = both(pixels, training=False)[0].numpy()
    names = [f"train/дом/{row}.jpg" for row in range(60)]
    detector = fit_detector("neighbour", features, np.arange(60) % 2, names, 0.05)
    return Confidence(1.7, detector, {"neighbour": {"noise": 1.0}})


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_inference_model(SPEC.model, len(CLASSES), SIDE)


@pytest.fixture(scope="module")
def confidence(model: keras.Model) -> Confidence:
    return confidence_of(SPEC, model)


@pytest.fixture(scope="module")
def exported(model: keras.Model, confidence: Confidence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rejecting") / "model"
    export_model(path, model, CLASSES, SPEC.data, confidence=confidence)
    return path


def export_old(path: Path, model: keras.Model, assets: Path) -> None:
    """Export as before version 3: no rejection, and a bad image is an error of the batch."""
    description = json.loads((assets / "model.json").read_text())
    dropped = ("temperature", "rejection")
    description = {key: value for key, value in description.items() if key not in dropped}
    (path.parent / "model.json").write_text(json.dumps(description | {"format_version": 1}))
    module = tf.Module()
    module.model = model
    files = (assets / "labels.txt", path.parent / "model.json")
    module.assets = [tf.saved_model.Asset(str(file)) for file in files]

    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.nn.softmax(model(pixels, training=False))
        label = tf.gather(tf.constant(CLASSES), tf.argmax(probabilities, axis=1))
        return {
            "label": label,
            "probability": tf.reduce_max(probabilities, 1),
            "probabilities": probabilities,
        }

    def classify(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        form = SPEC.data.pixel_format
        spec = tf.TensorSpec(form.shape, tf.uint8)
        pixels = tf.map_fn(lambda data: decode_and_resize(data, form), image_bytes, fn_output_signature=spec)
        return answer(tf.cast(pixels, tf.float32))

    signatures = {
        "serving_default": tf.function(classify).get_concrete_function(
            image_bytes=tf.TensorSpec([None], tf.string, name="image_bytes")
        ),
        "pixels": tf.function(answer).get_concrete_function(
            pixels=tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32, name="pixels")
        ),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def test_signatures_answer_how_known_an_image_is(
    exported: Path, model: keras.Model, confidence: Confidence
) -> None:
    require_computing(exported)
    loaded = tf.saved_model.load(str(exported))
    images = [encoded(seed=seed) for seed in range(3)]
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(images))
    assert {"label", "probability", "probabilities", "known", "accepted", "error"} == set(answer)
    pixels = np.stack([decode_and_resize(tf.constant(data), SPEC.data.pixel_format) for data in images])
    features, logits = build_feature_model(model)(pixels.astype(np.float32), training=False)
    np.testing.assert_allclose(logits, model(pixels.astype(np.float32), training=False), atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(logits / 1.7), atol=1e-5)
    detector = confidence.detector
    assert detector is not None
    known = detector.p_values(detector.scores(features)).numpy()
    np.testing.assert_allclose(answer["known"], known, atol=1e-6)
    assert (answer["accepted"].numpy() == (known >= 0.05)).all()
    flat = loaded.signatures["pixels"](pixels=tf.fill([1, SIDE, SIDE, 3], 255.0))
    assert not flat["accepted"].numpy()[0]
    nearest = loaded.signatures["nearest"](image_bytes=tf.constant([*images, b"bad"]))
    assert nearest["names"].shape == (4, 5)
    assert nearest["names"].numpy()[0, 0].decode().startswith("train/дом/")
    assert set(nearest["names"].numpy()[3]) == {b""}
    assert (np.diff(nearest["distances"].numpy()[:3], axis=1) >= 0).all()
    about = json.loads((exported / "assets" / "model.json").read_text())
    assert (about["format_version"], about["temperature"]) == (3, 1.7)
    assert about["rejection"] == {
        "method": "neighbour", "level": 0.05, "calibration_images": 60, "training_images": 60,
        "selection_auroc": {"neighbour": {"noise": 1.0}},
    }  # fmt: skip


def test_one_bad_image_does_not_fail_a_served_batch(exported: Path) -> None:
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    good = [encoded(kind, seed) for seed, kind in enumerate(("JPEG", "PNG", "BMP", "GIF", "WEBP", "JPEG"))]
    truncated = encoded(seed=9)[:700]
    batch = [*good[:3], truncated, *good[3:], huge_jpeg(), huge_png(), b"", b"text", good[1][:200]]
    answer = {name: values.numpy() for name, values in serve(image_bytes=tf.constant(batch)).items()}
    errors = [text.decode() for text in answer["error"]]
    is_good = np.array([not error for error in errors])
    assert is_good.tolist() == [True] * 3 + [False] + [True] * 3 + [False] * 5
    assert errors[3] == "damaged or truncated: the JPEG cannot be decoded"
    assert errors[7] == "too large: declares 20000 x 14000 pixels, over the limit of 100000 pixels"
    assert errors[8] == errors[7]
    assert errors[9:] == [
        "empty file",
        "not a JPEG, PNG, GIF, BMP or WebP image",
        "damaged or truncated: the PNG cannot be decoded",
    ]
    bad = {name: values[~is_good] for name, values in answer.items()}
    assert set(bad["label"]) == {b""}
    assert not bad["accepted"].any()
    for name in ("probability", "probabilities", "known"):
        assert (bad[name] == 0).all(), name
    alone = serve(image_bytes=tf.constant(good))
    for name in ("label", "probabilities", "known"):
        np.testing.assert_array_equal(answer[name][is_good], alone[name].numpy(), err_msg=name)


def test_concurrent_batches_get_their_own_answers(exported: Path) -> None:
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    batches = [
        [encoded(seed=seed), b"bad", encoded("PNG", seed)] if seed % 2 else [encoded(seed=seed)]
        for seed in range(8)
    ]
    expected = [serve(image_bytes=tf.constant(batch))["probabilities"].numpy() for batch in batches]
    wrong: list[int] = []

    def request(number: int) -> None:
        for _ in range(10):
            answer = serve(image_bytes=tf.constant(batches[number]))["probabilities"].numpy()
            if not np.allclose(answer, expected[number], atol=1e-6):
                wrong.append(number)

    threads = [threading.Thread(target=request, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_batches_are_decoded_to_the_same_pixels_as_for_training() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        encoded(), encoded(exif=exif), encoded(size=(900, 700)), encoded(size=(900, 700), exif=exif),
        encoded("PNG"), encoded("GIF"), encoded("BMP"), encoded("WEBP", lossless=True),
    ]  # fmt: skip
    for settings in ("resize: crop, crop_fraction: 0.9, interpolation: bicubic", "interpolation: nearest"):
        data = load_spec(settings=[f"data={{image_size: [24, 32], channels: 4, {settings}}}"]).data
        form = data.pixel_format
        pixels, errors = decode_batch(tf.constant(images), form, data.max_image_pixels)
        assert set(errors.numpy()) == {b""}
        for row, image in zip(pixels.numpy(), images, strict=True):
            np.testing.assert_array_equal(row, decode_and_resize(tf.constant(image), form))


def test_frames_of_a_gif_count_towards_the_limit_of_pixels() -> None:
    frames = [Image.fromarray(np.full((100, 100), 40 * n, np.uint8)) for n in range(6)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    noisy = encoded("GIF", size=(200, 200))
    data = tf.constant([file.getvalue(), noisy])
    assert sum(frame.width * frame.height for frame in gif_frames(file.getvalue())) == 60_000
    form = load_spec(settings=["data.image_size=16"]).data.pixel_format
    assert set(decode_batch(data, form, 60_000)[1].numpy()) == {b""}
    pixels, errors = decode_batch(data, form, 59_999)
    assert errors.numpy().tolist() == [b"too large: its frames have more than 59999 pixels together", b""]
    assert not pixels.numpy()[0].any()
    assert int(count_gif_pixels(data[0], 100_000)) == 60_000
    assert int(count_gif_pixels(data[1], 100_000)) == 40_000


def test_declared_sides_equal_those_that_python_reads() -> None:
    images = [encoded(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP")]
    images += [encoded("WEBP", lossless=True), huge_jpeg(), huge_png(), b"text", b""]
    for data in images:
        sides = tuple(int(side) for side in declared_sides(tf.constant(data)))
        width, height = declared_size(data) or (0, 0)
        assert sides == (height, width)


def test_model_of_an_earlier_version_predicts_without_rejection(
    exported: Path, model: keras.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_old(tmp_path / "old", model, exported / "assets")
    old, new = load_model(tmp_path / "old"), load_model(exported)
    assert (old.level, old.temperature, new.level, new.temperature) == (None, 1.0, 0.05, 1.7)
    images = [encoded(seed=0), encoded()[:300], encoded(seed=2)]
    answers = old.classify(images)
    assert answers.known is None
    assert [bool(error) for error in answers.errors] == [False, True, False]
    assert answers.errors[1] == "truncated: the JPEG ends early"
    assert (answers.probabilities[1] == 0).all()
    assert old.find_nearest(images[:1]) == [()]
    (tmp_path / "a.jpg").write_bytes(images[0])
    predict_command(str(tmp_path / "old"), [str(tmp_path / "a.jpg")], tmp_path)
    assert "unknown" not in capsys.readouterr().out


def test_predict_prints_unknown_for_images_that_are_not_accepted(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.cli.predict import PredictOptions

    path = tmp_path / "white.png"
    Image.new("RGB", (40, 30), "white").save(path)
    predict_command(str(exported), [str(path)], tmp_path)
    line = capsys.readouterr().out
    assert "  unknown          (nearest: " in line
    assert "; unlike the training images, p = 0.02)" in line
    predict_command(str(exported), [str(path)], tmp_path, PredictOptions(as_json=True))
    row = json.loads(capsys.readouterr().out)
    assert list(row) == ["path", "label", "probability", "probabilities", "known", "accepted"]
    assert row["accepted"] is False
    target = tmp_path / "answers.csv"
    predict_command(str(exported), [str(path)], tmp_path, PredictOptions(csv=str(target)))
    header, cells = (line.split(",") for line in target.read_text().splitlines())
    assert header[-2:] == ['"known"', '"accepted"']
    assert cells[-1] == "0"


def test_export_that_recognizes_images_differently_is_rejected(
    exported: Path, model: keras.Model, confidence: Confidence
) -> None:
    images = tuple(encoded(seed=seed) for seed in range(2))
    pixels = np.stack([decode_and_resize(tf.constant(data), SPEC.data.pixel_format) for data in images])
    features, logits = build_feature_model(model)(pixels.astype(np.float32), training=False)
    detector = confidence.detector
    assert detector is not None
    known = detector.p_values(detector.scores(features)).numpy()
    probabilities = tf.nn.softmax(logits / 1.7).numpy()
    golden = Golden(images, pixels.astype(np.float32), probabilities, known, 2 / 61)
    assert verify_export(exported, golden) < 1e-5
    with pytest.raises(TrainerError, match="recognizes known images differently"):
        verify_export(exported, replace(golden, known=known + 0.1))


def test_model_with_several_labels_rejects_images_and_answers_bad_ones(tmp_path: Path) -> None:
    spec = load_spec(
        settings=[f"data={{image_size: {SIDE}, labels: multi}}", "model={family: plain, filters: [4]}"]
    )
    model = build_inference_model(spec.model, len(CLASSES), SIDE)
    export_model(tmp_path / "model", model, CLASSES, spec.data, (0.0, 0.5), confidence_of(spec, model))
    loaded = load_model(tmp_path / "model")
    outputs = loaded.signatures["serving_default"](image_bytes=tf.constant([encoded(), b"bad"]))
    assert set(outputs) == {"labels", "probabilities", "known", "accepted", "error"}
    assert outputs["labels"].numpy()[0, 0] == b"cats"
    assert set(outputs["labels"].numpy()[1]) == {b""}
    assert not outputs["accepted"].numpy()[1]


def test_golden_predictions_contain_temperature_and_p_values(
    exported: Path, model: keras.Model, confidence: Confidence
) -> None:
    from helpers.small_training import Pixels, split

    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)
    few = replace(split("validation", 4, 0), pixels=Pixels(pixels))
    golden = make_golden(model, few, confidence=confidence)
    assert golden.known is not None
    assert golden.known.shape == (4,)
    plain = make_golden(model, few)
    assert plain.known is None
    assert np.abs(plain.probabilities - golden.probabilities).max() > 1e-6
