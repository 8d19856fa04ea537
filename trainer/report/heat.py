"""Pictures of occlusion maps: an image beside the same image with its map."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.data.convert import as_rgb
from trainer.evaluate.explain import Explanation

Pixels = npt.NDArray[np.uint8]

_LEAST_SIDE = 224
_GAP = 8
_MAP_SHARE = 0.55
"""Share of the colours of the map in the overlay; the rest is the image in grey."""


def draw_overlay(explanation: Explanation) -> Pixels:
    """Return the image in grey under its map, uint8 [height, width, 3].

    The colours are those of cividis (Nunez et al. 2018), which are the same with any colour blindness: from
    dark blue, without influence, to yellow.
    """
    from matplotlib import colormaps  # slow import

    grey = np.asarray(Image.fromarray(as_rgb(explanation.pixels)).convert("L"), np.float32)
    colours = colormaps["cividis"](explanation.heat)[..., :3] * 255.0
    mixed = (1.0 - _MAP_SHARE) * grey[..., None] + _MAP_SHARE * colours
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def encode_pair(explanation: Explanation, name: str) -> bytes:
    """Return a PNG with the image on the left and the overlay on the right.

    Small images are enlarged by a whole number. The caption, with `name`, the label and its probability, is
    in the PNG's metadata.
    """
    height, width = explanation.heat.shape
    times = max(1, _LEAST_SIDE // max(height, width))
    sides = [as_rgb(explanation.pixels), draw_overlay(explanation)]
    enlarged = [side.repeat(times, axis=0).repeat(times, axis=1) for side in sides]
    gap = np.full((times * height, _GAP, 3), 255, np.uint8)
    about = PngInfo()
    about.add_itxt("Title", f"{name}: {explanation.label} {explanation.probability:.3f}")
    picture = Image.fromarray(np.concatenate([enlarged[0], gap, enlarged[1]], axis=1))
    picture.save(data := io.BytesIO(), "PNG", optimize=True, pnginfo=about)
    return data.getvalue()
