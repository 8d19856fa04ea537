"""The first directory of a TIFF structure, as TIFF files and EXIF blocks have it.

In: bytes that begin with a TIFF header (TIFF 6.0, section 2). Out: the numbers of its tags. Damaged bytes
mean fewer tags: nothing here fails.
"""

from __future__ import annotations

import struct

ORIENTATION = 0x0112
_NEW_SUBFILE_TYPE, _SUB_DIRECTORIES, _DNG_VERSION = 0x00FE, 0x014A, 0xC612
_BYTE, _SHORT, _LONG = 1, 3, 4


def first_directory(data: bytes) -> dict[int, int]:
    """Return the first value of each tag of the first directory, by tag; 0 for what is no small number."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return {}
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack(order + "H", data[start : start + 2].ljust(2, b"\0"))
    tags: dict[int, int] = {}
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", data, at)
        form = {_BYTE: "B", _SHORT: "H", _LONG: "I"}.get(kind)
        tags.setdefault(tag, struct.unpack_from(order + form, data, at + 8)[0] if form else 0)
    return tags


def is_raw_photo(data: bytes) -> bool:
    """Return whether a TIFF file is a camera's raw photo, whose first image is only a preview.

    DNG says so in a tag of its own, CR2 behind the header; NEF, ARW and others begin with a reduced image and
    have the photo in a directory below. What lies beyond `data` is not looked at.
    """
    tags = first_directory(data)
    is_preview = bool(tags.get(_NEW_SUBFILE_TYPE, 0) & 1) and _SUB_DIRECTORIES in tags
    return data[8:10] == b"CR" or _DNG_VERSION in tags or is_preview
