"""Image augmentation: each operation against a reference, eagerly and in a graph."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer.augment.transforms import (
    DRAWS,
    EpochView,
    add_noise,
    augment_images,
    change_colors,
    draw_numbers,
    erase,
    find_view,
    resample,
    rotate,
    translate,
)
from trainer.spec import AugmentSpec, CropSpec

EVERYTHING = AugmentSpec(
    flip="both",
    crop=CropSpec(size=24),
    rotate_degrees=30.0,
    brightness=0.2,
    contrast=0.3,
    saturation=0.3,
    hue=0.1,
    noise=0.1,
    erase=0.5,
)

VIEW = EpochView(24, 24)


@pytest.fixture
def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8))


def draws(step: int = 5, count: int = 6) -> tf.Tensor:
    return draw_numbers(1, tf.constant(step, tf.int64), count)


def whole(images: tf.Tensor, side: int, mirrored: bool = False, flipped: bool = False) -> tf.Tensor:
    count, size = images.shape[0], float(images.shape[1])
    zero, full = tf.zeros(count), tf.fill([count], size)
    return resample(
        tf.cast(images, tf.float32),
        zero,
        zero,
        full,
        full,
        tf.fill([count], mirrored),
        tf.fill([count], flipped),
        (side, side),
    )


@pytest.mark.parametrize("side", [8, 20, 32, 48])
def test_resampling_the_whole_image_equals_tensorflows_resize(images: tf.Tensor, side: int) -> None:
    expected = tf.image.resize(images, (side, side), antialias=True)
    np.testing.assert_allclose(whole(images, side), expected, atol=1e-3)


def test_resampling_a_rectangle_equals_resize_of_the_box_in_pillow(images: tf.Tensor) -> None:
    box = (3.0, 5.0, 23.0, 29.0)
    left, top, right, bottom = (tf.fill([6], each) for each in box)
    no = tf.fill([6], False)
    ours = resample(tf.cast(images, tf.float32), top, left, bottom - top, right - left, no, no, (12, 12))
    for image, resampled in zip(images.numpy(), ours.numpy(), strict=True):
        cropped = image[5:29, 3:23]
        theirs = Image.fromarray(cropped).resize((12, 12), Image.Resampling.BILINEAR)
        # Only the interior: at the border ours reads pixels outside the rectangle, and Pillow does not.
        np.testing.assert_allclose(
            resampled[2:-2, 2:-2], np.asarray(theirs, np.float32)[2:-2, 2:-2], atol=1.0
        )


def test_mirrored_and_flipped_resampling_reverse_the_axes(images: tf.Tensor) -> None:
    floats = tf.cast(images, tf.float32)
    np.testing.assert_allclose(whole(images, 32, mirrored=True), floats[:, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(whole(images, 32, flipped=True), floats[:, ::-1], atol=1e-3)


def test_translation_moves_by_whole_pixels_and_reflects_the_border(images: tf.Tensor) -> None:
    floats = tf.cast(images, tf.float32)
    padded = np.pad(floats, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    shares = tf.constant([[0.0, 0.0], [0.1, 0.9], [0.5, 0.5], [0.3, 0.7], [0.99, 0.0], [0.99, 0.99]])
    moved = translate(floats, shares, 2)
    corners = [(4, 4), (4, 0), (2, 2), (3, 1), (0, 4), (0, 0)]
    for (top, left), source, image in zip(corners, padded, moved, strict=True):
        np.testing.assert_array_equal(image, source[top : top + 32, left : left + 32])
    spec = AugmentSpec(translate_pixels=2)
    np.testing.assert_array_equal(
        augment_images(images, numbers := draws(), spec, EpochView(32, 32)),
        translate(floats, numbers[:, 5:7], 2),
    )


@pytest.mark.parametrize("crop", [None, CropSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0))])
def test_alternating_flip_mirrors_the_selected_images(images: tf.Tensor, crop: CropSpec | None) -> None:
    turn = np.array([True, False, True, True, False, False])
    spec = AugmentSpec(flip="alternating", crop=crop)
    changed = augment_images(images, draws(), spec, EpochView(32, 32), tf.constant(turn))
    np.testing.assert_allclose(changed[turn], images.numpy()[turn][:, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(changed[~turn], images.numpy()[~turn], atol=1e-3)


def test_rotation_by_a_quarter_turn_is_a_quarter_turn(images: tf.Tensor) -> None:
    floats = tf.cast(images, tf.float32)
    turned = rotate(floats, tf.fill([6], np.pi / 2))
    np.testing.assert_allclose(turned, tf.image.rot90(floats), atol=0.05)
    np.testing.assert_array_equal(rotate(floats, tf.zeros(6)), floats)


def test_neutral_colors_change_nothing_and_full_desaturation_is_grey(images: tf.Tensor) -> None:
    floats, one, zero = tf.cast(images, tf.float32), tf.ones(6), tf.zeros(6)
    np.testing.assert_allclose(change_colors(floats, zero, one, one, zero), floats, atol=1e-3)
    grey = change_colors(floats, zero, one, zero, zero)
    np.testing.assert_allclose(grey, tf.tile(tf.image.rgb_to_grayscale(floats), [1, 1, 1, 3]), atol=0.1)


def test_brightness_adds_and_contrast_keeps_the_mean_grey(images: tf.Tensor) -> None:
    dim, one, zero = 100.0 + 0.2 * (tf.cast(images, tf.float32) - 128.0), tf.ones(6), tf.zeros(6)
    np.testing.assert_allclose(change_colors(dim, 0.1 * one, one, one, zero), dim + 25.5, atol=1e-3)
    stronger = change_colors(dim, zero, 1.5 * one, one, zero)
    before, after = (tf.reduce_mean(tf.image.rgb_to_grayscale(each), [1, 2, 3]) for each in (dim, stronger))
    np.testing.assert_allclose(before, after, atol=0.05)
    assert (np.std(stronger, axis=(1, 2)) > 1.4 * np.std(dim, axis=(1, 2))).all()


def test_a_full_turn_of_hue_changes_nothing_and_grey_has_no_hue(images: tf.Tensor) -> None:
    floats, one, zero = tf.cast(images, tf.float32), tf.ones(6), tf.zeros(6)
    np.testing.assert_allclose(change_colors(floats, zero, one, one, one), floats, atol=0.05)
    grey = tf.tile(floats[..., :1], [1, 1, 1, 3])
    np.testing.assert_allclose(change_colors(grey, zero, one, one, 0.3 * one), grey, atol=0.2)


def test_noise_has_the_requested_standard_deviation() -> None:
    images = tf.fill([4, 64, 64, 3], 128.0)
    noisy = add_noise(images, tf.constant([0.0, 0.02, 0.05, 0.1]), draws()[:4, :2])
    np.testing.assert_allclose(np.std(noisy, axis=(1, 2, 3)) / 255, [0.0, 0.02, 0.05, 0.1], rtol=0.03)


def test_erasing_covers_a_rectangle_within_the_area_limits() -> None:
    images, numbers = tf.fill([500, 32, 32, 3], 7.0), draw_numbers(2, tf.constant(0, tf.int64), 500)[:, :5]
    np.testing.assert_array_equal(erase(images, numbers, 0.0), images)
    share = np.mean(erase(images, numbers, 1.0).numpy()[..., 0] != 7.0, axis=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.40
    assert 0.4 < np.mean(np.mean(erase(images, numbers, 0.5).numpy() != 7.0, axis=(1, 2, 3)) > 0) < 0.6


def test_the_same_draws_give_the_same_images_eagerly_and_in_a_graph(images: tf.Tensor) -> None:
    eager = augment_images(images, draws(), EVERYTHING, VIEW)
    graph = tf.function(lambda x, numbers: augment_images(x, numbers, EVERYTHING, VIEW))(images, draws())
    assert eager.shape == (6, 24, 24, 3)
    assert eager.dtype == tf.float32
    np.testing.assert_allclose(eager, graph, atol=1e-2)
    assert tf.reduce_min(eager) >= 0.0
    assert tf.reduce_max(eager) <= 255.0


def test_augmentation_does_not_depend_on_the_division_among_replicas(images: tf.Tensor) -> None:
    numbers = draws()
    together = augment_images(images, numbers, EVERYTHING, VIEW)
    parts = [augment_images(images[start::2], numbers[start::2], EVERYTHING, VIEW) for start in (0, 1)]
    np.testing.assert_allclose(together[0::2], parts[0], atol=1e-2)
    np.testing.assert_allclose(together[1::2], parts[1], atol=1e-2)


def test_draws_depend_on_seed_and_step_and_are_uniform() -> None:
    assert not np.array_equal(draws(5), draws(6))
    assert not np.array_equal(
        draw_numbers(1, tf.constant(5, tf.int64), 6), draw_numbers(2, tf.constant(5, tf.int64), 6)
    )
    np.testing.assert_array_equal(draws(5), draws(5))
    many = draw_numbers(0, tf.constant(0, tf.int64), 5000).numpy()
    assert many.shape == (5000, DRAWS)
    assert many.min() >= 0.0
    assert many.max() < 1.0
    np.testing.assert_allclose(many.mean(axis=0), 0.5, atol=0.03)


def test_no_augmentation_changes_no_pixel(images: tf.Tensor) -> None:
    np.testing.assert_array_equal(
        augment_images(images, draws(), AugmentSpec(), EpochView(32, 32)), tf.cast(images, tf.float32)
    )


def test_crops_grow_from_the_first_size_to_the_last() -> None:
    spec = AugmentSpec(crop=CropSpec(size=112, first_size=64))
    views = [find_view(spec, 128, epoch, 80) for epoch in range(80)]
    sides = [view.height for view in views]
    assert sides[0] == 64
    assert sides == sorted(sides)
    assert set(sides[60:]) == {112}
    assert {side % 16 for side in sides} == {0}
    assert views == [EpochView(side, side) for side in sides]
    assert find_view(AugmentSpec(), 128, 0, 10) == EpochView(128, 128, is_cropped=False)
    assert find_view(AugmentSpec(crop=CropSpec()), 128, 0, 10) == EpochView(128, 128)
    # The size of a non-square image is that of its shorter side.
    assert find_view(spec, (256, 128), 0, 80) == EpochView(128, 64)
    assert find_view(AugmentSpec(crop=CropSpec()), (96, 160), 0, 80) == EpochView(96, 160)


def test_last_epochs_can_use_whole_images(images: tf.Tensor) -> None:
    spec = AugmentSpec(crop=CropSpec(size=16, whole_epochs=2))
    views = [find_view(spec, 32, epoch, 5) for epoch in range(5)]
    assert views == [EpochView(16, 16)] * 3 + [EpochView(32, 32, is_cropped=False)] * 2
    assert augment_images(images, draws(), spec, views[0]).shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(augment_images(images, draws(), spec, views[-1]), images)


def test_non_square_images_are_augmented_like_square_ones() -> None:
    square = np.random.default_rng(4).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    tall = tf.constant(square.repeat(2, axis=1))
    spec = EVERYTHING.model_copy(update={"rotate_degrees": 0.0, "noise": 0.0})
    ours = augment_images(tall, draws(), spec, EpochView(48, 24)).numpy()
    theirs = augment_images(tf.constant(square), draws(), spec, EpochView(24, 24)).numpy()
    assert ours.shape == (6, 48, 24, 3)
    # The same crop, flip, colours and rectangle; only the resampling of rows differs.
    assert np.abs(ours.reshape(6, 24, 2, 24, 3).mean(axis=2) - theirs).mean() < 6


def test_grey_images_have_no_hue_and_alpha_keeps_its_values(images: tf.Tensor) -> None:
    grey = images[..., :1]
    colours = AugmentSpec(brightness=0.2, contrast=0.3)
    vivid = AugmentSpec(brightness=0.2, contrast=0.3, saturation=0.9, hue=0.5)
    view = EpochView(32, 32)
    changed = augment_images(grey, draws(), vivid, view)
    np.testing.assert_array_equal(changed, augment_images(grey, draws(), colours, view))
    in_rgb = augment_images(tf.repeat(grey, 3, axis=-1), draws(), colours, view)
    np.testing.assert_allclose(changed, in_rgb[..., :1], atol=1e-3)
    noisy = vivid.model_copy(update={"noise": 0.3})
    rgba = tf.concat([images, grey], axis=-1)
    both = augment_images(rgba, draws(), noisy, view)
    np.testing.assert_array_equal(both[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(both[..., :3], augment_images(images, draws(), noisy, view))
    for channels in (1, 4):
        everything = augment_images(rgba[..., :channels], draws(), EVERYTHING, VIEW)
        assert everything.shape == (6, 24, 24, channels)
