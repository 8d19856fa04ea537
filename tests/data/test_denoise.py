"""Noise removal: the filter, its settings, and a trained run whose exported model removes noise too."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.published_model import export
from helpers.small_training import split
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import trainer
from trainer.data.decode import decode_and_resize, resize_image
from trainer.data.denoise import diffuse, remove_noise
from trainer.data.ingest import build_to_pixels
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.errors import UsageError
from trainer.evaluate.predict import evaluate_source
from trainer.evaluate.prediction_files import read_predictions
from trainer.export import export_model, load_model, make_golden, verify_export
from trainer.model import build_inference_model
from trainer.spec import PixelFormat, load_spec, parse_spec, spec_digest
from trainer.spec.denoise import DenoiseSpec

Pixels = NDArray[np.uint8]
STRONGEST = DenoiseSpec(steps=10, strength=0.2, step_size=0.2)


def drawing(mode: str = "RGB") -> Pixels:
    """Return an image of 60 x 80 with flat areas, edges and a slope."""
    image = Image.new("RGB", (80, 60), (200, 190, 170))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 40, 50), fill=(180, 40, 30))
    draw.rectangle((50, 5, 72, 30), fill=(30, 60, 160))
    draw.line((45, 58, 79, 36), fill=(10, 10, 10), width=3)
    pixels = np.asarray(image.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def noisy(image: Pixels, sigma: float, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def psnr(image: Pixels, clean: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((image.astype(float) - clean) ** 2)))


def filtered(image: Pixels, spec: DenoiseSpec = STRONGEST) -> Pixels:
    return remove_noise(tf.constant(image), spec).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_noise_is_removed_and_edges_stay(mode: str, sigma: int) -> None:
    clean = drawing(mode)
    before = noisy(clean, sigma)
    if mode == "RGBA":
        before[..., 3] = 255
    assert psnr(filtered(before, DenoiseSpec()), clean) > psnr(before, clean) + 3


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 1), (9, 1, 4), (16, 20, 3)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_image_stays_exactly_equal(shape: tuple[int, int, int], value: int) -> None:
    image = np.full(shape, value, np.uint8)
    np.testing.assert_array_equal(filtered(image), image)


def test_flat_areas_away_from_an_edge_stay_exactly_equal() -> None:
    image = np.full((20, 40, 3), 50, np.uint8)
    image[:, 20:] = (200, 10, 90)
    after = filtered(image)
    np.testing.assert_array_equal(after[:, :10], image[:, :10])
    np.testing.assert_array_equal(after[:, 30:], image[:, 30:])


def test_every_step_stays_within_the_neighbours_of_the_step_before() -> None:
    values = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, 30, 40, 3)), tf.float32)
    one = DenoiseSpec(steps=1, strength=0.2, step_size=0.2)
    for _ in range(30):
        padded = np.pad(values.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        values = diffuse(values, one)
        assert (values.numpy() >= windows.min(axis=(-2, -1))).all()
        assert (values.numpy() <= windows.max(axis=(-2, -1))).all()


def test_images_of_a_batch_do_not_influence_one_another() -> None:
    first, second = drawing().astype(np.float32), noisy(drawing(), 40).astype(np.float32)
    both = diffuse(tf.constant(np.stack([first, second])), STRONGEST).numpy()
    np.testing.assert_array_equal(both[0], diffuse(tf.constant(first[None]), STRONGEST)[0])
    np.testing.assert_array_equal(both[1], diffuse(tf.constant(second[None]), STRONGEST)[0])


def test_padding_is_not_filtered() -> None:
    form = PixelFormat(64, 64, "pad", denoise=STRONGEST)
    image = noisy(drawing(), 25)
    after = resize_image(tf.constant(image), form).numpy()
    assert not after[:8].any()
    inner = resize_image(tf.constant(image), PixelFormat(48, 64)).numpy()
    np.testing.assert_array_equal(after[8:56], filtered(inner))


def test_decoder_of_training_and_exported_model_have_the_same_pixels(tmp_path: Path) -> None:
    form = PixelFormat(48, 64, denoise=DenoiseSpec())
    files = []
    for kind, times in (("PNG", 1), ("JPEG", 1), ("JPEG", 16)):
        image = Image.fromarray(noisy(drawing(), 25).repeat(times, axis=0).repeat(times, axis=1))
        image.save(file := io.BytesIO(), kind)
        files.append(file.getvalue())
    trained = build_to_pixels(form)("image", files)
    for data, pixels in zip(files, trained, strict=True):
        np.testing.assert_array_equal(decode_and_resize(tf.constant(data), form), pixels)
        plain = decode_and_resize(tf.constant(data), form._replace(denoise=None)).numpy()
        np.testing.assert_array_equal(filtered(plain, DenoiseSpec()), pixels)
        assert (plain != pixels).any()
    model = load_model(export(tmp_path / "model", "data.denoise={}"))
    small = build_to_pixels(model.data.pixel_format)("image", files)
    np.testing.assert_allclose(model.classify(files).probabilities, model.classify_pixels(small), atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.denoise.strength=0.21", ("unstable above 0.2", "at most 0.2", "0.21")),
        ("data.denoise.step_size=0.25", ("unstable above 0.2", "at most 0.2", "0.25")),
        ("data.denoise.step_size=0", ("data.denoise.step_size", "greater than 0")),
        ("data.denoise.steps=0", ("data.denoise.steps", "1")),
        ("data.denoise.steps=11", ("data.denoise.steps", "10")),
        ("data.denoise.method=median", ("data.denoise.method", "'fab'")),
        ("data.denoise=fab", ("section", "data.denoise.method")),
        ("data.denoise.sigma=1", ("data.denoise.sigma is not a setting",)),
    ],
)
def test_unusable_settings_are_errors(setting: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        load_spec(settings=[setting])
    assert all(word in str(refused.value) for word in words), refused.value


def test_specs_and_models_without_noise_removal_are_those_of_earlier_versions(tmp_path: Path) -> None:
    assert spec_digest(load_spec()) == "93d5d5dc3c5fde1a225764854e4cc50c6297a75add9b07a04087d9cf6db67db2"
    old = parse_spec("data: {image_size: 32}", "an old spec")
    assert spec_digest(old) != spec_digest(load_spec(settings=["data.image_size=32", "data.denoise={}"]))
    about = json.loads((export(tmp_path / "model") / "assets" / "model.json").read_text())
    assert "denoise" not in about
    assert load_model(tmp_path / "model").data.denoise is None


def test_export_is_verified_also_if_the_source_has_lost_the_images(tmp_path: Path) -> None:
    settings = ["data={image_size: 16, resize: crop, crop_fraction: 0.9, denoise: {}}", "model.family=plain"]
    spec = load_spec(settings=[*settings, "model.filters=[4]"])
    model = build_inference_model(spec.model, 2, 16)
    export_model(tmp_path / "model", model, ("dark", "light"), spec.data)
    held_out = split("validation", 3, 0)  # its files do not exist
    golden = make_golden(model, held_out, form=spec.data.pixel_format)
    assert golden.lost == 3
    assert verify_export(tmp_path / "model", golden) < 1e-6
    assert (golden.pixels != held_out.pixels.gather(np.arange(3))).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with noise removal on noisy drawings of two classes."""
    folder = tmp_path_factory.mktemp("denoised")
    for label, name in enumerate(("left", "right")):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(12):
            image = drawing()[:, :: 1 - 2 * label]
            Image.fromarray(noisy(image, 25, seed=number)).save(folder / "data" / name / f"{number}.png")
    settings = {
        "data.image_size": 24,
        "data.denoise": {"steps": 7},
        "model": {"family": "plain", "filters": [4]},
        "train.epochs": 2,
        "train.precision": "float32",
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        trainer.train(folder / "data", folder / "runs", run_name="first", settings=settings)
    return folder / "runs" / "first"


@pytest.mark.engine
def test_exported_model_of_a_run_answers_as_the_trained_one(run: Path) -> None:
    about = json.loads((run / "model" / "assets" / "model.json").read_text())
    assert about["denoise"] == {"method": "fab", "steps": 7, "strength": 0.1, "step_size": 0.2}
    model, source = load_model(run), run.parents[1] / "data"
    trained = {
        name: row
        for predictions in read_predictions(run / "predictions.csv")
        for name, row in zip(predictions.names, predictions.probabilities, strict=True)
    }
    served = model.classify([(source / name).read_bytes() for name in trained]).probabilities
    np.testing.assert_allclose(served, list(trained.values()), atol=1e-5)
    metrics, _ = evaluate_source(model, str(source), run.parent, SilentProgress())
    assert metrics["all"]["count"] == len(trained)
    for setting in ("data.denoise.steps=3", "data.denoise=null"):
        with pytest.raises(UsageError, match="cannot be changed for an evaluation"):
            evaluate_source(model, str(source), run.parent, SilentProgress(), [setting])


@pytest.mark.engine
def test_pixels_of_a_run_are_denoised(run: Path, tmp_path: Path) -> None:
    spec = parse_spec((run / "spec.yaml").read_text(), "spec.yaml").data
    denoised = load_dataset(spec, tmp_path, SilentProgress(), lambda rejected: None).train.pixels
    plain = spec.model_copy(update={"denoise": None})
    before = load_dataset(plain, tmp_path, SilentProgress(), lambda rejected: None).train.pixels
    image = before.gather(np.array([0]))[0]
    np.testing.assert_array_equal(denoised.gather(np.array([0]))[0], filtered(image, DenoiseSpec(steps=7)))
