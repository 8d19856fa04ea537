"""Conversion of items to image files that the exported model and other programs can open."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.data.convert import prepare

_CIFAR_SIDE = 32
_NO_LIMIT = 1 << 62
_COMPRESS_LEVEL = 6
"""zlib's default, because these files are stored permanently."""


def as_file(data: bytes, encoding: str) -> bytes:
    """Return the bytes of an item with this `encoding` as an image file that the model's decoder supports.

    Raw records and images that need conversion are encoded losslessly as PNG; other files are returned
    unchanged.
    """
    if encoding == "image":
        return prepare(data, _NO_LIMIT, _COMPRESS_LEVEL).data
    planes = np.frombuffer(data, np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE)
    return bytes(tf.io.encode_png(planes.transpose(1, 2, 0)).numpy())
