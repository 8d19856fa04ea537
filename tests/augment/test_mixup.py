"""Mixup and CutMix: which images are mixed, their partners, and their label shares."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.augment.transforms import mix_images
from trainer.spec import AugmentSpec

COUNT, SIDE = 400, 20


def mixed(spec: AugmentSpec, count: int = COUNT) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images of one constant value each, the mixed images, their partners and label shares."""
    values = np.arange(count, dtype=np.float32)
    images = np.broadcast_to(values[:, None, None, None], (count, SIDE, SIDE, 3)).copy()
    draws = np.random.default_rng(3).random((count, 4), np.float32)
    done, partners, shares = mix_images(tf.constant(images), tf.constant(draws), spec)
    return images, done.numpy(), partners.numpy(), shares.numpy()


def test_partners_are_adjacent_and_the_last_of_an_odd_batch_has_none() -> None:
    _, _, partners, _ = mixed(AugmentSpec(mixup=1.0), 5)
    assert partners.tolist() == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("spec", [AugmentSpec(mixup=1.0), AugmentSpec(cutmix=1.0)])
def test_pixels_are_mixed_in_the_shares_of_the_labels(spec: AugmentSpec) -> None:
    images, done, partners, shares = mixed(spec)
    expected = shares[:, None] * images[:, 0, 0] + (1 - shares[:, None]) * images[partners][:, 0, 0]
    np.testing.assert_allclose(done.mean(axis=(1, 2)), expected, rtol=1e-4)
    assert 0 <= shares.min() < 0.3 < 0.9 < shares.max() <= 1


def test_mixup_blends_all_pixels_and_cutmix_replaces_one_rectangle() -> None:
    _, blended, _, _ = mixed(AugmentSpec(mixup=1.0))
    assert np.ptp(blended, axis=(1, 2, 3)).max() == 0
    images, cut, partners, _ = mixed(AugmentSpec(cutmix=1.0))
    foreign = (cut == images[partners])[..., 0]
    assert ((cut == images)[..., 0] | foreign).all()
    rows, columns = foreign.any(axis=2), foreign.any(axis=1)
    assert (foreign == rows[:, :, None] & columns[:, None, :]).all()


def test_mixing_occurs_with_the_requested_probability() -> None:
    _, done, _, shares = mixed(AugmentSpec(mixup=0.3, cutmix=0.2))
    is_cut = np.ptp(done, axis=(1, 2, 3)) > 0
    assert 0.12 < is_cut.mean() < 0.28
    assert 0.4 < (shares < 1).mean() < 0.6
    images, untouched, _, shares = mixed(AugmentSpec())
    np.testing.assert_array_equal(untouched, images)
    assert (shares == 1).all()
