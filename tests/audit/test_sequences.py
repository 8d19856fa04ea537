"""Sequences of frames among images, by similarity of neighbours by name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.audit.sequences import find_sequences


def scenes(count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 255, (count, 14, 14))


def enlarged(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.kron(images, np.ones((1, 4, 4))).clip(0, 255).astype(np.uint8)


def test_frames_of_videos_are_sequences_and_those_across_the_split_are_counted() -> None:
    videos = scenes(12, 0)
    frames = np.repeat(videos, 6, axis=0) + scenes(72, 1) * 0.15
    names = [
        f"{'train' if frame < 4 else 'validation'}/a/{6 * video + frame}.png"
        for video in range(12)
        for frame in range(6)
    ]
    is_train = np.array([name.startswith("train") for name in names])
    order = np.random.default_rng(2).permutation(72)  # 10.png comes after 9.png whatever the order
    found = find_sequences(enlarged(frames)[order], [names[row] for row in order], is_train[order])
    assert found is not None
    assert len(found.rows) == 12
    assert found.across == 12
    assert {len(rows) for rows in found.rows} == {6}


def test_independent_images_are_no_sequences() -> None:
    names = [f"a/{number}.png" for number in range(60)]
    assert find_sequences(enlarged(scenes(60, 3)), names, np.ones(60, bool)) is None
    # All images are similar, so neighbours are not special.
    alike = scenes(1, 4) + scenes(60, 5) * 0.2
    assert find_sequences(enlarged(alike), names, np.ones(60, bool)) is None
    assert find_sequences(enlarged(scenes(3, 6)), names[:3], np.ones(3, bool)) is None
