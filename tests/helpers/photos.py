"""Small images that the `photos` fixture draws."""

from __future__ import annotations

from PIL import Image, ImageDraw


def draw_photo(name: str, number: int) -> Image.Image:
    """Draw image `number` of class `name`; each number gives a different image."""
    image = Image.new("RGB", (40, 32), (230, 225, 220 + number))
    draw = ImageDraw.Draw(image)
    shade = 160 + 8 * number
    left, top = 2 + 2 * number, 2 + number
    box = (left, top, left + 18, top + 18)
    if name == "discs":
        draw.ellipse(box, fill=(shade, 20, 20))
    elif name == "squares":
        draw.rectangle(box, fill=(20, shade, 20))
    else:
        for offset in range(0, 19, 6):
            draw.rectangle((left, top + offset, left + 18, top + offset + 2), fill=(20, 20, shade))
    return image
