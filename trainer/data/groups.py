"""Groups of images that belong together, such as the frames of one video or the photos of one patient.

`data.group` selects how they are found. All images of a group are on one side of the split and in one fold.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.data.convert import open_with_plugin
from trainer.data.formats import picture_format
from trainer.data.items import Item, Source
from trainer.data.near_duplicates import find_near_duplicates
from trainer.data.readers import SourceContents
from trainer.errors import DataError, UsageError
from trainer.sanitize import printable
from trainer.spec.schema import DataSpec

_EXIF_TAGS = {"date": 0x9003, "camera": 0x0110, "serial": 0xA431}
"""DateTimeOriginal, Model and BodySerialNumber; the date is the day alone."""
_EXIF_IFD = 0x8769
_EXAMPLES = 3


def with_groups(contents: SourceContents, group: str | None) -> SourceContents:
    """Return `contents` with the group of each image, by the value of data.group.

    Groups by column were read with the table, and groups of duplicates need the pixels, see
    `with_duplicate_groups`. An image without a value is a group of its own, and a warning counts them. Raises
    DataError if no image has a value.
    """
    if group is None or group == "duplicates":
        return contents
    kind, _, value = group.partition(":")
    if kind == "name":
        pattern = re.compile(value)
        items = [replace(item, group=_match(pattern, item.name)) for item in contents.items]
    elif kind == "exif":
        items = [replace(item, group=_read_exif(item, value)) for item in contents.items]
    else:
        items = contents.items
    missing = [item.name for item in items if item.group is None]
    shown = printable(group)
    if items and len(missing) == len(items):
        raise DataError(
            "data.group finds no group: it matches no image.",
            "Compare the pattern with the names in predictions.csv, or check the column or EXIF field.",
            received=f"{shown}, images such as {', '.join(missing[:_EXAMPLES])}",
        )
    warning = [f"{len(missing)} of {len(items)} images have no group by {shown}"] if missing else []
    return contents._replace(items=items, warnings=[*contents.warnings, *warning])


def with_duplicate_groups(items: Sequence[Item], pixels: NDArray[np.uint8]) -> list[Item]:
    """Return `items` with the groups of near-duplicates; other images have no group.

    pixels: thumbnails of the items, in their order.
    """
    grouped = list(items)
    for duplicates in find_near_duplicates(pixels):
        for row in duplicates.rows:
            grouped[row] = replace(grouped[row], group=items[duplicates.rows[0]].name)
    return grouped


def group_numbers(items: Sequence[Source]) -> NDArray[np.int64] | None:
    """Return the number of the group of each item, int64 [items]; None if no item has a group.

    An item without a group is a group of its own.
    """
    names = [getattr(item, "group", None) for item in items]
    if not any(name is not None for name in names):
        return None
    keys = [(row, "") if name is None else (-1, name) for row, name in enumerate(names)]
    numbers: dict[tuple[int, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def warnings_of_groups(items: Sequence[Item]) -> tuple[str, ...]:
    """Return a warning if images of one group are in several splits, which only the source can cause."""
    splits: dict[str, set[str]] = {}
    for item in items:
        if item.group is not None:
            splits.setdefault(item.group, set()).add(item.split or "")
    across = sorted(name for name, names in splits.items() if len(names) > 1)
    if not across:
        return ()
    count = f"{len(across)} groups have" if len(across) > 1 else "1 group has"
    examples = ", ".join(map(printable, across[:_EXAMPLES]))
    return (f"{count} images in several splits of the source, such as {examples}",)


def require_no_tables(spec: DataSpec) -> None:
    """Raise UsageError for settings that apply while shards are packed, not when they are read."""
    names = [name for name in ("exclude", "relabel", "group") if getattr(spec, name) is not None]
    if names:
        raise UsageError(
            f"data.{names[0]} cannot be used with shards, whose images and splits are fixed.",
            f"Pack the shards again with `trainer shard ... --set data.{names[0]}=...`.",
            received=f"{getattr(spec, names[0])}",
        )


def _match(pattern: re.Pattern[str], name: str) -> str | None:
    """Return the captured groups of the first match, or the whole match if the pattern captures none."""
    match = pattern.search(name)
    if match is None:
        return None
    return "/".join(part or "" for part in match.groups()) if match.groups() else match[0]


def _read_exif(item: Item, name: str) -> str | None:
    """Return the EXIF field `name` of an image; None if it has none or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = item.read()
            with open_with_plugin(data, "HEIC" if picture_format(data) == "HEIC" else "") as image:
                fields = image.getexif()
                value = fields.get_ifd(_EXIF_IFD).get(_EXIF_TAGS[name]) or fields.get(_EXIF_TAGS[name])
    except (
        Exception
    ):  # damaged files raise exceptions of many kinds; the image is rejected when it is decoded
        return None
    text = str(value or "").strip("\0 ")
    return (text[:10] if name == "date" else text) or None
