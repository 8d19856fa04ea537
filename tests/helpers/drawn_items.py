"""Items in memory for the audit: drawn images that look a little like photos, encoded on request."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from trainer.audit.measures import Measures, measure_images
from trainer.data.progress import SilentProgress

PLENTY = 10**8


@dataclass(frozen=True)
class DrawnItem:
    """An image in memory, as `trainer.data.items.Source`; without data, reading it fails."""

    name: str
    data: bytes | None
    encoding: str = "image"

    def read(self) -> bytes:
        if self.data is None:
            raise OSError("no such file")
        return self.data


def draw_scene(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """Draw coloured discs with fine texture on a gradient; each seed gives another image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([rng.uniform(60, 160) + rng.uniform(-40, 40) * y / height for _ in range(3)], axis=-1)
    for _ in range(12):
        radius = rng.uniform(0.05, 0.3) * width
        is_inside = (x - rng.uniform(0, width)) ** 2 + (y - rng.uniform(0, height)) ** 2 < radius**2
        pixels[is_inside] = rng.uniform(20, 235, 3)
    pixels += (10 * np.sin(x / rng.uniform(1.5, 3)) * np.sin(y / rng.uniform(1.5, 3)))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def measured(images: Sequence[bytes | None], names: Sequence[str] | None = None) -> Measures:
    """Return the measures of encoded images; None is a file that cannot be read."""
    chosen = names or [f"image-{number}" for number in range(len(images))]
    items = [DrawnItem(name, data) for name, data in zip(chosen, images, strict=True)]
    return measure_images(items, PLENTY, SilentProgress())
