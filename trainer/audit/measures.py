"""Measures of all images: file, metadata, colours, sharpness and noise.

`measure_images` reads and decodes each image once, on all cores. Only the measures are kept, about 500 bytes
an image.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.audit.picture import Picture, decode_picture
from trainer.audit.residual import NOISE_NAMES, measure_noise
from trainer.data.convert import LARGE_PIXELS
from trainer.data.header import declared_size
from trainer.data.items import Source
from trainer.data.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]

_SHARPNESS_SIDE = 256
_BORDER_TOLERANCE = 16
"""Largest difference from the border's colour, of 255; JPEG blurs the colour of a narrow frame."""
_CHUNK_ITEMS = 32
_one_large = threading.Lock()


@dataclass(frozen=True, eq=False)
class Measures:
    """Measures of N images, in the order of the items.

    Of an image that cannot be read or decoded, `is_readable` is false, numbers are NaN (integers 0, the
    orientation 1), texts are empty and the date is NaT.
    """

    names: tuple[str, ...]
    """As `Source.name`."""
    source: NDArray[np.str_]
    """Folder of the name, all that precedes the last '/'; empty if there is none."""
    is_readable: NDArray[np.bool_]
    """Whether the image could be decoded."""
    file_bytes: NDArray[np.float64]
    """Size of the encoded image in bytes, also of one that cannot be decoded; NaN if it cannot be read."""
    width: Floats
    """In pixels, upright."""
    height: Floats
    """In pixels, upright."""
    format: NDArray[np.str_]
    """'JPEG', 'PNG', 'WebP', 'HEIC', ...; 'raw' for records of CIFAR."""
    jpeg_quality: NDArray[np.int16]
    """Quality in 1..100, estimated from the quantization tables; 0 for other formats."""
    jpeg_table: NDArray[np.uint64]
    """Digest of the quantization tables; 0 for other formats."""
    orientation: NDArray[np.uint8]
    """EXIF orientation, 1..8; 1 means upright or not set. The other measures are of the upright image."""
    camera: NDArray[np.str_]
    """Make and model of EXIF."""
    taken: NDArray[np.datetime64]
    """Date of EXIF in seconds, local time."""
    colour: Floats
    """[N, 3]: mean red, green and blue, in 0..1."""
    brightness: Floats
    """Mean luma (ITU-R BT.601), in 0..1."""
    contrast: Floats
    """Standard deviation of the luma, in 0..0.5."""
    flat_share: Floats
    """Share of pixels with the most frequent of 256 grey values, in 0..1."""
    sharpness: Floats
    """Variance of the Laplacian of the luma, 0..255, at a longer side of at most 256 pixels."""
    border_share: Floats
    """[N, 4]: top, bottom, left, right: share of the outermost line within 16 of 255 of its median colour."""
    border_colour: Floats
    """[N, 4, 3]: median red, green and blue of the outermost lines, in 0..1."""
    noise: Floats
    """[N, len(NOISE_NAMES)]: see `trainer.audit.residual.measure_noise`."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[Any]) -> Measures:
        """Return the measures of some rows, by number, int64, or mask, bool [N]."""
        numbers = np.arange(len(self))[rows]
        values = {name: getattr(self, name)[numbers] for name in _EMPTY}
        names = tuple(self.names[number] for number in numbers)
        return Measures(names=names, source=self.source[numbers], **values)


_EMPTY: dict[str, tuple[str, tuple[int, ...], Any]] = {
    # name: (dtype, shape of one image, value of an image that cannot be read)
    "is_readable": ("?", (), False),
    "file_bytes": ("f8", (), np.nan),
    "width": ("f4", (), np.nan),
    "height": ("f4", (), np.nan),
    "format": ("U16", (), ""),
    "jpeg_quality": ("i2", (), 0),
    "jpeg_table": ("u8", (), 0),
    "orientation": ("u1", (), 1),
    "camera": ("U48", (), ""),
    "taken": ("M8[s]", (), np.datetime64("NaT")),
    "colour": ("f4", (3,), np.nan),
    "brightness": ("f4", (), np.nan),
    "contrast": ("f4", (), np.nan),
    "flat_share": ("f4", (), np.nan),
    "sharpness": ("f4", (), np.nan),
    "border_share": ("f4", (4,), np.nan),
    "border_colour": ("f4", (4, 3), np.nan),
    "noise": ("f4", (len(NOISE_NAMES),), np.nan),
}


def measure_images(items: Sequence[Source], max_pixels: int, progress: Progress) -> Measures:
    """Read, decode and measure `items` on all cores.

    Images that declare more than `max_pixels` pixels, or that cannot be read or decoded, have no measures;
    they never raise an error. Raises MemoryError.
    """
    columns = {
        name: np.full((len(items), *shape), empty, dtype) for name, (dtype, shape, empty) in _EMPTY.items()
    }

    def measure_chunk(start: int) -> int:
        numbers = range(start, min(start + _CHUNK_ITEMS, len(items)))
        for number in numbers:
            for name, value in _measure_item(items[number], max_pixels).items():
                columns[name][number] = value
        return len(numbers)

    task = progress.start("Measuring", len(items), "images")
    executor = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="measure")
    try:
        for count in executor.map(measure_chunk, range(0, len(items), _CHUNK_ITEMS)):
            task.advance(count)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        task.finish()
    names = tuple(item.name for item in items)
    folders = np.array([name.rpartition("/")[0] for name in names], np.str_)
    return Measures(names=names, source=folders, **columns)


def _measure_item(item: Source, max_pixels: int) -> dict[str, Any]:
    """Return the measures of one item; only its size if it cannot be decoded."""
    try:
        data = item.read()
    except OSError:
        return {}
    measures: dict[str, Any] = {"file_bytes": len(data)}
    width, height = declared_size(data) or (0, 0)
    with _one_large if width * height > LARGE_PIXELS else nullcontext():
        try:
            return measures | measure_picture(decode_picture(data, item.encoding, max_pixels))
        except MemoryError:
            raise
        except Exception:
            # On damaged bytes Pillow's plugins raise exceptions of any type.
            return measures


def measure_picture(picture: Picture) -> dict[str, Any]:
    """Return the measures of a decoded image by column, without `file_bytes`."""
    grey = picture.image.convert("L")
    pixels = np.asarray(picture.image)
    colour = np.asarray(picture.image.histogram(), np.float64).reshape(3, 256) @ np.arange(256)
    border_share, border_colour = _measure_border(pixels)
    return {
        "is_readable": True,
        "width": picture.image.width,
        "height": picture.image.height,
        "format": picture.format,
        "jpeg_quality": picture.jpeg_quality,
        "jpeg_table": picture.jpeg_table,
        "orientation": picture.orientation,
        "camera": picture.camera,
        "taken": np.datetime64(picture.taken or "NaT", "s"),
        "colour": colour / (255 * grey.width * grey.height),
        **_measure_grey(grey),
        "border_share": border_share,
        "border_colour": border_colour,
        "noise": measure_noise(pixels),
    }


def _measure_grey(grey: Image.Image) -> dict[str, float]:
    """Return brightness, contrast, flat_share and sharpness of an image of mode L."""
    counts = np.asarray(grey.histogram(), np.float64)
    shares, levels = counts / counts.sum(), np.arange(256) / 255
    brightness = float(shares @ levels)
    return {
        "brightness": brightness,
        "contrast": float(np.sqrt(shares @ (levels - brightness) ** 2)),
        "flat_share": float(shares.max()),
        "sharpness": _measure_sharpness(grey),
    }


def _measure_sharpness(grey: Image.Image) -> float:
    """Return the variance of the Laplacian (Pech-Pacheco et al. 2000); NaN for a side below 3 pixels."""
    from PIL import Image

    scale = min(1.0, _SHARPNESS_SIDE / max(grey.size))
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    small = grey if size == grey.size else grey.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    values = np.asarray(small, np.float32)
    if min(values.shape) < 3:
        return float("nan")
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float(np.var(around - 4 * values[1:-1, 1:-1]))


def _measure_border(pixels: NDArray[np.uint8]) -> tuple[list[float], list[NDArray[np.float64]]]:
    """Return border_share and border_colour of an image, uint8 [h, w, 3]."""
    shares, colours = [], []
    for line in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        colour = np.median(line, axis=0)
        shares.append(float((np.abs(line - colour) <= _BORDER_TOLERANCE).all(axis=1).mean()))
        colours.append(colour / 255)
    return shares, colours


_NAMED = {field.name for field in fields(Measures)} - {"names", "source"}
if set(_EMPTY) != _NAMED:
    raise ImportError("The columns of Measures and of _EMPTY differ.")
