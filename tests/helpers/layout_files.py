"""Files of every dataset layout, and helpers that read them."""

from __future__ import annotations

import struct
from pathlib import Path

from trainer.data import readers
from trainer.data.items import Item, Rejection
from trainer.data.readers.import_files import Buckets

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 3, 2)


def read_all(root: Path, layout: str) -> readers.SourceContents:
    """Read a layout without access to any bucket."""
    return readers.read_layout(root, layout, Buckets(lambda uris: {}))


def read_layout(root: Path, layout: str) -> tuple[list[Item], list[Rejection], str]:
    """Read like `read_all`, without its warnings."""
    return read_all(root, layout)[:3]


def put(root: Path, *names: str, data: bytes = PNG) -> Path:
    """Write `data` to each file; .txt and .xml files get text instead of the default PNG."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if data == PNG and path.suffix in (".txt", ".xml") else data)
    return root


def triples(items: list[Item]) -> list[tuple[str, str, str | None]]:
    return [(item.name, item.label, item.split) for item in items]


def reasons(rejections: list[Rejection]) -> dict[str, tuple[str, bool]]:
    return {rejection.name: (rejection.reason, rejection.damaged) for rejection in rejections}


def cifar_record(labels: list[int], fill: int) -> bytes:
    return bytes(labels) + bytes([fill]) * 3072
