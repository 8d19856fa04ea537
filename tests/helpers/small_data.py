"""Small datasets, as files and as items without files."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.dataset import Dataset
from trainer.data.items import Item, Rejection
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.spec.schema import DataSpec

SIZE = 8


def png(seed: int, side: int = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def two_splits(root: Path, train: int = 6, validation: int = 3) -> Path:
    """Write classes cats and dogs in two splits; every image is different."""
    seed = 0
    for split, count in (("train", train), ("validation", validation)):
        for label in ("dogs", "cats"):
            for index in range(count):
                put(root / split / label / f"{index}.png", png(seed))
                seed += 1
    return root


def load(root: Path, cache: Path, rejected: list[Rejection] | None = None, **settings: Any) -> Dataset:
    spec = DataSpec.model_validate({"source": str(root), "image_size": SIZE} | settings)
    heard: list[Rejection] = [] if rejected is None else rejected
    return load_dataset(spec, cache, SilentProgress(), heard.extend)


def items_of(*triples: tuple[str, str | None, str]) -> list[Item]:
    """Return items named a, b, c, ... from triples of (label, split, content)."""
    return [
        Item(chr(ord("a") + index), label, split, Path("x"))
        for index, (label, split, _) in enumerate(triples)
    ]


def digests(*contents: object) -> list[str]:
    return [hashlib.sha256(str(content).encode()).hexdigest() for content in contents]
