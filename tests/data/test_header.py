"""Image headers: detection of the format, and the limit on the number of pixels declared."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from trainer.data.header import declared_size, image_kind, reason_not_to_decode


def test_all_frames_of_a_gif_count_towards_the_pixel_limit() -> None:
    frames = [Image.effect_noise((60 + 10 * index, 50), 80) for index in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], disposal=2)
    data = buffer.getvalue()
    pixels = (60 + 70 + 80) * 50
    assert reason_not_to_decode(data, pixels) is None
    assert f"frames have {pixels} pixels" in str(reason_not_to_decode(data, pixels - 1))
    for length in range(len(data)):  # a truncated header raises no error
        reason_not_to_decode(data[:length], pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_declared_size_equals_that_of_pillow(kind: str) -> None:
    for options in ({}, {"lossless": True}, {"progressive": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"}):
        buffer = io.BytesIO()
        Image.new("RGB", (301, 77), "red").save(buffer, kind, **options)
        assert image_kind(buffer.getvalue()) == kind.lower()
        assert declared_size(buffer.getvalue()) == (301, 77)
        assert reason_not_to_decode(buffer.getvalue(), 301 * 77) is None
        assert "301 x 77" in str(reason_not_to_decode(buffer.getvalue(), 301 * 77 - 1))
        for length in range(60):
            assert declared_size(buffer.getvalue()[:length]) in (None, (301, 77))
            assert reason_not_to_decode(buffer.getvalue()[:length], 301 * 77 - 1)
