"""Items to files of their own.

In: an item's bytes. Out: an encoded image that the exported model and any other program opens.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.data.convert import prepare

_CIFAR_SIDE = 32
_NO_LIMIT = 1 << 62
_COMPRESS_LEVEL = 6
"""zlib's own default: these files are kept."""


def as_file(data: bytes, encoding: str) -> bytes:
    """Return an item's bytes, of that `encoding`, as an image file that the model's decoder reads.

    A raw record and a picture that has to be converted become PNG, losslessly; others are unchanged.
    """
    if encoding == "image":
        return prepare(data, _NO_LIMIT, _COMPRESS_LEVEL).data
    planes = np.frombuffer(data, np.uint8).reshape(3, _CIFAR_SIDE, _CIFAR_SIDE)
    return bytes(tf.io.encode_png(planes.transpose(1, 2, 0)).numpy())
