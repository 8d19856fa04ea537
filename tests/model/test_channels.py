"""Grey, RGBA and 16-bit images, and non-square sizes, from the file to the network."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.image_kinds import HEIGHT, KINDS, ORIENTED, WIDTH, Pixels, encoded, photo, tiff
from helpers.small_data import SIZE, load, two_splits
from PIL import Image, ImageOps

from trainer.data.convert import as_rgb, prepare
from trainer.data.decode import decode_and_resize, decode_image, resize_image
from trainer.data.statistics import describe_images
from trainer.model import build_inference_model, build_model
from trainer.model.weights import adapt_channels
from trainer.report.pictures import encode_picture
from trainer.spec import PixelFormat, PlainSpec, ResidualSpec

SMALL = ResidualSpec(stem_filters=4, filters=(8,), blocks=(1,), average_mirror=True)


@pytest.fixture(scope="module", params=[1, 4])
def decode(request: pytest.FixtureRequest) -> Callable[[bytes], Pixels]:
    channels: int = request.param
    function = tf.function(
        partial(decode_image, channels=channels), input_signature=[tf.TensorSpec([], tf.string)]
    )
    return lambda data: function(data).numpy()


def over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def reference(data: bytes, channels: int) -> Pixels:
    """Return Pillow's pixels: upright, as RGBA, or as grey after compositing over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if channels == 4:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(over_white(image).convert("L"))[..., None]


def test_every_kind_of_image_is_decoded_like_pillow(
    decode: Callable[[bytes], Pixels],
) -> None:
    for kind, (make, tolerance) in KINDS.items():
        data = make()
        found = decode(data)
        expected = reference(data, found.shape[2])
        assert found.shape == expected.shape, kind
        # Fully transparent pixels may have any colour.
        is_seen = expected[..., -1:] > 0 if found.shape[2] == 4 else True
        difference = np.where(is_seen, np.abs(found.astype(int) - expected.astype(int)), 0)
        assert difference.max() <= tolerance + 1, kind


def test_16_bit_images_keep_their_upper_8_bits(decode: Callable[[bytes], Pixels]) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        found = decode(prepare(encoded(Image.fromarray(deep), kind), 1 << 20).data)
        np.testing.assert_array_equal(found[..., 0], deep >> 8)
        if found.shape[2] == 4:
            assert (found[..., 3] == 255).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_rgba_is_resized_like_pillow_without_leaking_transparent_colours(interpolation: str) -> None:
    image = photo(4)
    image[:, :8] = (255, 0, 0, 255)
    image[:, 8:14] = (0, 255, 0, 0)
    found = resize_image(tf.constant(image), PixelFormat(10, 9, "stretch", interpolation, 1.0, 4)).numpy()
    method = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(image).resize((9, 10), method)).astype(int)
    np.testing.assert_allclose(found[..., 3], expected[..., 3], atol=1)
    is_seen = expected[..., 3] > 32
    assert np.abs(found.astype(int) - expected)[is_seen].max() <= 4
    assert found[:, :5, 1].max() <= 4  # no green next to the red


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_to_height_and_width_equals_pillow(channels: int) -> None:
    image = photo(channels)
    image[..., -1] = 255 if channels == 4 else image[..., -1]
    resized = partial(resize_image, tf.constant(image))
    picture = Image.fromarray(image.squeeze())

    def expect(form: PixelFormat, box: tuple[int, int, int, int]) -> None:
        part = picture.crop(box).resize((form.width, form.height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resized(form).numpy().squeeze(), np.asarray(part).astype(int), atol=1)

    expect(PixelFormat(7, 20, channels=channels), (0, 0, WIDTH, HEIGHT))
    # Of 21 x 13 pixels, the largest part twice as wide as high is 21 x 10; twice as high as wide, 6 x 13.
    expect(PixelFormat(8, 16, "crop", channels=channels), (0, 1, WIDTH, 11))
    expect(PixelFormat(16, 8, "crop", channels=channels), (7, 0, 13, HEIGHT))
    padded = resized(PixelFormat(20, 10, "pad", channels=channels)).numpy()
    assert padded[:7].max() == padded[13:].max() == 0  # 21 x 13 becomes 10 x 6
    assert padded[7:13].reshape(6, -1).max(axis=1).all()


@pytest.mark.parametrize("how", [("stretch",), ("crop",), ("pad",), ("crop", "bicubic", 0.8, 1)])
def test_large_jpeg_of_any_orientation_is_decoded_at_reduced_size(how: tuple[str, ...]) -> None:
    form = PixelFormat(28, 44, *how)  # type: ignore[arg-type]
    small = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8))
    for orientation in (1, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = tf.constant(encoded(small.resize((803, 605), 3), "JPEG", quality=95, exif=exif))
        found = decode_and_resize(data, form).numpy().astype(int)
        expected = resize_image(decode_image(data, form.channels), form).numpy().astype(int)
        assert (found != expected).any(), "it is not reduced"
        assert np.abs(found - expected).mean() < 0.5, orientation


def test_height_and_width_refer_to_the_upright_image() -> None:
    form = PixelFormat(20, 8, "crop")
    turned = tf.constant(ORIENTED["jpeg"](tiff(6)))
    np.testing.assert_array_equal(decode_and_resize(turned, form), resize_image(decode_image(turned), form))
    # Upright it is 605 x 803 pixels, eight times 75 x 100; as stored it is only six times as high.
    small = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    large = tf.constant(encoded(small.resize((803, 605), 3), "JPEG", exif=exif))
    form = PixelFormat(100, 75)
    assert (decode_and_resize(large, form) != resize_image(decode_image(large), form)).numpy().any()


def test_grey_images_have_no_colourfulness(tmp_path: Path) -> None:
    dataset = load(
        two_splits(tmp_path / "images"), tmp_path / "cache", image_size=[SIZE, 2 * SIZE], channels=1
    )
    assert dataset.train.pixels.shape[1:] == (SIZE, 2 * SIZE, 1)
    measures = describe_images(dataset)["measures"]
    assert max(measures["colourfulness"]) == max(measures["warmth"]) == 0.0
    assert min(measures["brightness"]) > 0.3


def test_images_of_any_channels_are_shown_in_the_report() -> None:
    rgba = photo(4)
    np.testing.assert_allclose(as_rgb(rgba), np.asarray(over_white(Image.fromarray(rgba))), atol=1)
    for channels in (1, 3, 4):
        assert encode_picture(photo(channels))[0].startswith("data:image/png")
        large = photo(channels).repeat(9, axis=0).repeat(9, axis=1)
        assert encode_picture(large)[0].startswith("data:image/jpeg")


@pytest.mark.parametrize("spec", [SMALL, PlainSpec(filters=(4, 4), average_mirror=True)])
@pytest.mark.parametrize("channels", [1, 4])
def test_networks_accept_any_channels_height_and_width(spec: PlainSpec | ResidualSpec, channels: int) -> None:
    model = build_inference_model(spec, 3, (14, 21), channels)
    images = tf.random.stateless_uniform((2, 14, 21, channels), (0, 0), 0.0, 255.0)
    answers = model(images)
    assert answers.shape == (2, 3)
    # The mean over an image and its mirror image is the same for the mirror image.
    np.testing.assert_allclose(answers, model(tf.reverse(images, [2])), atol=1e-5)
    other = build_model(spec, 3, (14, 21), channels=channels)(images)
    assert np.abs(other - answers).max() > 1e-5


def test_rgb_kernel_is_adapted_like_timm() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 5)).astype(np.float32)
    grey = np.random.default_rng(1).normal(size=(1, 8, 8, 1)).astype(np.float32)

    def answer(channels: int) -> tf.Tensor:
        return tf.nn.conv2d(np.repeat(grey, channels, axis=3), adapt_channels(kernel, channels), 1, "VALID")

    assert adapt_channels(kernel, 3) is kernel
    np.testing.assert_allclose(answer(1), answer(3), atol=1e-4)
    rgba = adapt_channels(kernel, 4)
    assert rgba.dtype == np.float32
    np.testing.assert_allclose(rgba[:, :, :3], 0.75 * kernel, rtol=1e-6)
    np.testing.assert_array_equal(rgba[:, :, 3], rgba[:, :, 0])  # channels repeat: red follows blue
    with pytest.raises(ValueError, match=r"not \(3, 3, 1, 5\)"):
        adapt_channels(kernel[:, :, :1], 4)
