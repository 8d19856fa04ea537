"""Serialization of an image as a TFRecord record.

The record is a framed tf.train.Example that other programs can read.
Format: https://www.tensorflow.org/tutorials/load_data/tfrecord.
"""

from __future__ import annotations

import struct

import tensorflow as tf

from trainer.data.readers.protobuf import first_values
from trainer.data.readers.tfrecord import masked_crc

_HEADER_BYTES = 12


def make_record(image: bytes, label: str, number: int, name: str) -> tuple[bytes, int]:
    """Return the record of an encoded image, and the byte offset of the image in the record.

    `number` is the class index of the label.
    """
    values = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/text": _text(label),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
        "image/filename": _text(name),
    }
    example = tf.train.Example(features=tf.train.Features(feature=values))
    body = example.SerializeToString(deterministic=True)
    length = struct.pack("<Q", len(body))
    framed = b"".join(
        [length, struct.pack("<I", masked_crc(length)), body, struct.pack("<I", masked_crc(body))]
    )
    return framed, _HEADER_BYTES + first_values(body)["image/encoded"].start


def _text(value: str) -> tf.train.Feature:
    data = value.encode("utf-8", "surrogateescape")
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
