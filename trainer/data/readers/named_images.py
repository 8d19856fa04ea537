"""Labels from image file names: `cat.0.jpg` has the label cat.

The labels are used only if the names of all images in a folder are unambiguous.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from trainer.data.items import normalized
from trainer.data.readers.read_result import bare_name, split_named

_NUMBERED = re.compile(r"(?P<label>.*?[^\W\d_].*?)[._ -]+\(?\d+\)?")
_SYNSET = re.compile(r"n\d{8}")
_MIN_IMAGES = 2
# Prefixes that cameras, scanners and tools put before a number.
_COMMON_PREFIXES = frozenset(
    {"", "dsc", "dscn", "dscf", "imag", "photo", "pic", "pics", "picture", "pxl", "mvimg", "wp", "gopr", "p"}
    | {
        "screenshot",
        "scan",
        "frame",
        "video",
        "vid",
        "movie",
        "file",
        "page",
        "crop",
        "patch",
        "tile",
        "slide",
    }
    | {
        "sample",
        "patient",
        "subject",
        "case",
        "id",
        "isic",
        "untitled",
        "download",
        "capture",
        "cam",
        "camera",
    }
    | {"foto", "imagem", "copy", "copia", "whatsapp", "object", "item", "part", "batch", "fold", "none"}
    | {"fb", "received", "signal", "snapchat"}
)


def labels_of_names(pictures: Sequence[Path]) -> list[str] | None:
    """Return the label of each image, or None unless all are named `class.number` or `class_number`.

    A class must have no digit (WordNet IDs excepted), must not be a common prefix (`IMG`) or a split, and
    needs two images. At least two classes are required.
    """
    matches = [_NUMBERED.fullmatch(path.stem) for path in pictures]
    labels = [normalized(match["label"]) for match in matches if match]
    counts = Counter(labels)
    is_complete = len(labels) == len(pictures) and len(counts) > 1 and min(counts.values()) >= _MIN_IMAGES
    return labels if is_complete and all(map(_may_be_class, counts)) else None


def _may_be_class(label: str) -> bool:
    if _SYNSET.fullmatch(label):
        return True
    has_digit = any(map(str.isdigit, label))
    return not has_digit and bare_name(label) not in _COMMON_PREFIXES and split_named(label) is None
