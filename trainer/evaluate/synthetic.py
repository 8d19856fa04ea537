"""Synthetic images that show nothing of the training classes, made from pixels of the training images.

They decide how a run recognizes unknown images. They are functions of the pixels and the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_CELLS = (4, 7)
"""Minimum and maximum number of patches per side of a shuffled image."""
_COARSEST = 16
"""Maximum side in pixels of a grain of noise."""


def make_unknown_images(images: Pixels, seed: int) -> dict[str, Pixels]:
    """Return one image of each kind per image of `images`, uint8 [count, height, width, channels].

    noise: normal noise of several grain sizes, with the mean and deviation of the colours. texture: a small
    patch, repeated. spectrum: the amplitudes of the Fourier transform with random phases. shuffled: the
    patches of an image in random order. mixed: the same with patches of two images.
    """
    kinds: dict[str, Callable[[Pixels, Pixels, np.random.Generator], NDArray[np.floating]]] = {
        "noise": _make_noise,
        "texture": _repeat_patch,
        "spectrum": _scramble_phases,
        "shuffled": _shuffle_patches,
        "mixed": _mix_patches,
    }
    made = {}
    for number, (kind, make) in enumerate(kinds.items()):
        rng = np.random.default_rng([seed, number])
        others = np.roll(images, max(1, len(images) // 2), axis=0)
        rows = [_to_pixels(make(image, other, rng)) for image, other in zip(images, others, strict=True)]
        made[kind] = np.stack(rows)
    return made


def _to_pixels(image: NDArray[np.floating]) -> Pixels:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _make_noise(image: Pixels, _: Pixels, rng: np.random.Generator) -> NDArray[np.floating]:
    height, width, channels = image.shape
    grain = int(min(2 ** rng.integers(0, 5), _COARSEST, height, width))
    noise = rng.normal(size=(-(-height // grain), -(-width // grain), channels))
    noise = noise.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
    return np.asarray(image.mean(axis=(0, 1)) + noise * image.std(axis=(0, 1)))


def _repeat_patch(image: Pixels, _: Pixels, rng: np.random.Generator) -> NDArray[np.floating]:
    height, width, _channels = image.shape
    side = int(rng.integers(max(2, min(height, width) // 16), max(3, min(height, width) // 5)))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    patch = image[top : top + side, left : left + side]
    repeated = np.tile(patch, (-(-height // side), -(-width // side), 1))
    return repeated[:height, :width].astype(np.float64)


def _scramble_phases(image: Pixels, _: Pixels, rng: np.random.Generator) -> NDArray[np.floating]:
    spectrum = np.fft.fft2(image.astype(np.float64), axes=(0, 1))
    # The phases of real noise keep the image real; equal phases in all channels keep its colours.
    phases = np.angle(np.fft.fft2(rng.normal(size=image.shape[:2])))[..., None]
    phases[0, 0] = 0.0
    return np.asarray(np.fft.ifft2(np.abs(spectrum) * np.exp(1j * phases), axes=(0, 1)).real)


def _shuffle_patches(image: Pixels, _: Pixels, rng: np.random.Generator) -> NDArray[np.floating]:
    return _mix_patches(image, image, rng)


def _mix_patches(image: Pixels, other: Pixels, rng: np.random.Generator) -> NDArray[np.floating]:
    cells = int(min(rng.integers(*_CELLS, endpoint=True), *image.shape[:2]))
    height, width = image.shape[0] // cells, image.shape[1] // cells
    corners = [(row * height, column * width) for row in range(cells) for column in range(cells)]
    result = image.astype(np.float64)
    for (top, left), source in zip(corners, rng.permutation(len(corners)), strict=True):
        from_top, from_left = corners[source]
        result[top : top + height, left : left + width] = (image, other)[rng.integers(2)][
            from_top : from_top + height, from_left : from_left + width
        ]
    return result
