"""Embedded data sets, which ship with dependencies and need no network.

A data set is written once to a folder of class folders in the cache.
"""

from __future__ import annotations

from pathlib import Path

from trainer.data.progress import Progress
from trainer.errors import UsageError
from trainer.storage import build_once, translate_errors

DIGIT_NAMES = tuple("0123456789")


def embedded_folder(name: str, cache_dir: Path, progress: Progress) -> Path:
    """Return the folder of the embedded data set `name`; "digits" is the only one.

    "digits" contains scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, with grey values scaled from
    0..16 to 0..255, as `<0..9>/NNNN.png`, where NNNN is the index in the set. Raises UsageError (unknown
    name, the cache is not writable), TemporaryError (full disk).
    """
    if name != "digits":
        raise UsageError(
            "There is no such embedded data set; there is embedded:digits.",
            received=f"{f'embedded:{name}'!r}",
        )

    def build(folder: Path) -> None:
        _write_digits(folder, progress)

    return build_once(cache_dir / "embedded" / "digits", build)


def _write_digits(folder: Path, progress: Progress) -> None:
    # Imported here because scikit-learn takes a second to import and is rarely needed.
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    task = progress.start("Writing the embedded digits", len(pixels), "images")
    with translate_errors(folder):
        for name in DIGIT_NAMES:
            (folder / name).mkdir()
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            # Uncompressed, so that the bytes, and the split derived from them, do not depend on the version
            # of zlib.
            Image.fromarray(image).save(
                folder / DIGIT_NAMES[int(label)] / f"{number:04d}.png", compress_level=0
            )
            task.advance(1)
    task.finish()
