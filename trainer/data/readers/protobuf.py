"""Minimal parser for tf.train.Example that returns the byte range of the encoded image.

It extracts labels, texts and the location of the image in one serialized Example, so that the image can be
read later without the rest. A protobuf parser would copy the image and not return its location.
Format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


@dataclass(frozen=True)
class Feature:
    """One value of an Example: the `start` and `end` of its bytes, or its number."""

    start: int = 0
    end: int = 0
    number: int | None = None
    several: bool = False
    """Whether the feature has more values."""


def first_values(record: bytes) -> dict[str, Feature]:
    """Return the first value of each bytes and int64 feature of an Example, by feature name.

    Raises ValueError if the bytes are not an Example.
    """
    # Example.features = 1; Features.feature = 1, a map whose entries have key = 1 and value = 2.
    values: dict[str, Feature] = {}
    for features in _messages(record, Feature(0, len(record)), 1):
        for entry in _messages(record, features, 1):
            keys, bodies = list(_messages(record, entry, 1)), list(_messages(record, entry, 2))
            value = _first_value(record, bodies[-1]) if bodies else None
            if keys and value:
                values[record[keys[-1].start : keys[-1].end].decode("utf-8", "replace")] = value
    return values


def _first_value(record: bytes, feature: Feature) -> Feature | None:
    """Return the first `value` = 1 of Feature.bytes_list = 1 or Feature.int64_list = 3."""
    texts = (text for values in _messages(record, feature, 1) for text in _messages(record, values, 1))
    numbers = (
        Feature(number=number)
        for values in _messages(record, feature, 3)
        for field, _, content in _fields(record, values)
        if field == 1
        for number in _numbers(record, content)
    )
    values = list(islice(texts, 2)) or list(islice(numbers, 2))
    return replace(values[0], several=len(values) > 1) if values else None


def _numbers(record: bytes, content: Feature) -> Iterator[int]:
    """Yield the numbers of a packed list, which is bytes, or the number of an unpacked field."""
    position, number = content.start, content.number
    if number is not None:
        yield _signed(number)
    while number is None and position < content.end:
        value, position = _varint(record, position, content.end)
        yield _signed(value)


def _signed(number: int) -> int:
    """Convert an unsigned 64-bit number to signed (two's complement)."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _messages(record: bytes, message: Feature, wanted: int) -> Iterator[Feature]:
    return (
        content for number, wire, content in _fields(record, message) if number == wanted and wire == _BYTES
    )


def _fields(record: bytes, message: Feature) -> Iterator[tuple[int, int, Feature]]:
    """Yield each field of a message as (field number, wire type, content). Raises ValueError."""
    position = message.start
    while position < message.end:
        key, position = _varint(record, position, message.end)
        wire, content = key & 7, Feature(position, position)
        if wire == _VARINT:
            number, position = _varint(record, position, message.end)
            content = Feature(number=number)
        elif wire == _BYTES:
            length, position = _varint(record, position, message.end)
            content = Feature(position, position + length)
            position += length
        elif wire in _FIXED:
            position += _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if position > message.end:
            raise ValueError("a field ends after its message")
        yield key >> 3, wire, content


def _varint(record: bytes, position: int, end: int) -> tuple[int, int]:
    """Read a base-128 varint, low bits first; return the number and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = record[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number does not end")
