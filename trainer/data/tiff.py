"""Parser for the first directory of a TIFF structure, as in TIFF files and EXIF blocks.

The input begins with a TIFF header (TIFF 6.0, section 2). Damaged bytes result in fewer tags, not in an
error.
"""

from __future__ import annotations

import struct

ORIENTATION = 0x0112
_NEW_SUBFILE_TYPE, _SUB_DIRECTORIES, _DNG_VERSION = 0x00FE, 0x014A, 0xC612
_BYTE, _SHORT, _LONG = 1, 3, 4


def first_directory(data: bytes) -> dict[int, int]:
    """Return the first value of each tag of the first directory; 0 if it is not a byte, short or long."""
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
    """Return whether a TIFF file is a raw photo of a camera, whose first image is only a preview.

    DNG has a tag of its own, CR2 a marker after the header. NEF, ARW and others begin with a reduced image
    and store the photo in a subdirectory. Anything beyond `data` is ignored.
    """
    tags = first_directory(data)
    is_preview = bool(tags.get(_NEW_SUBFILE_TYPE, 0) & 1) and _SUB_DIRECTORIES in tags
    return data[8:10] == b"CR" or _DNG_VERSION in tags or is_preview
