"""tf.train.Example messages, parsed without TensorFlow, and the offset of a value in a serialized one.

The offset makes it possible to read an image later without the rest of its record. The message types are
declared here, because importing TensorFlow takes seconds and must not happen before its environment variables
are set.
Format: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/example.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

# Field names, numbers and types of each message; a type is BYTES, INT64 or the name of a message. The map
# of features has its wire format, repeated entries; names are bytes, because not every writer uses UTF-8.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "BytesList": [("value", 1, "BYTES")],
    "Int64List": [("value", 1, "INT64")],
    "Feature": [("bytes_list", 1, "BytesList"), ("int64_list", 3, "Int64List")],
    "Entry": [("key", 1, "BYTES"), ("value", 2, "Feature")],
    "Features": [("feature", 1, "Entry")],
    "Example": [("features", 1, "Features")],
}
_REPEATED = ("BytesList.value", "Int64List.value", "Features.feature")
_PREFIX_BYTES = 64


@dataclass(frozen=True)
class FeatureValue:
    """First value of a feature: bytes or a number."""

    data: bytes | None = None
    number: int | None = None
    has_more: bool = False
    """Whether the feature has more values."""


def read_first_values(record: bytes) -> dict[str, FeatureValue]:
    """Return the first value of each bytes and int64 feature of an Example, by feature name.

    Raises ValueError if the bytes are not an Example.
    """
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(record)
    except DecodeError as error:
        raise ValueError("invalid protobuf message") from error
    values: dict[str, FeatureValue] = {}
    for entry in example.features.feature:
        data, numbers = entry.value.bytes_list.value, entry.value.int64_list.value
        name = entry.key.decode("utf-8", "replace")
        if data:
            values[name] = FeatureValue(data=data[0], has_more=len(data) > 1)
        elif numbers:
            values[name] = FeatureValue(number=numbers[0], has_more=len(numbers) > 1)
    return values


def find_offset(record: bytes, value: bytes) -> int:
    """Return the offset of `value` in a record that contains it."""
    # A search for the whole value first preprocesses it, which is slow for a large image.
    start = record.find(value[:_PREFIX_BYTES])
    return start if record.startswith(value, start) else record.find(value, start)


@cache
def _example_class() -> Any:
    """Return the class of Example messages, in a descriptor pool separate from that of TensorFlow."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file = FileDescriptorProto(name="example.proto", package="trainer", syntax="proto3")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in fields:
            is_repeated = f"{message}.{name}" in _REPEATED
            label = (
                FieldDescriptorProto.LABEL_REPEATED if is_repeated else FieldDescriptorProto.LABEL_OPTIONAL
            )
            field = declared.field.add(name=name, number=number, label=label)
            if kind in _MESSAGES:
                field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".trainer.{kind}"
            else:
                field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind}")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("trainer.Example"))
