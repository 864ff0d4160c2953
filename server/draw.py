"""Boxes and points drawn into an image. Owns no geometry: places are fractions of width and height."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from mdinfer.errors import ImageError, RequestError
from mdinfer.result import XY, Box

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


def draw_places(image: bytes, places: Sequence[Box | XY], path: str) -> None:
    """Write the image with its places to `path`, in the format its suffix says.

    Raises ImageError for an image that cannot be read, RequestError for a file that cannot be written.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception:  # Pillow raises many kinds, and their texts can hold addresses
        raise ImageError("the image cannot be read to draw into it") from None
    pen = ImageDraw.Draw(picture)
    width = max(2, round(min(picture.size) / 150))
    for i, place in enumerate(places):
        _draw(pen, place, picture.size, COLOURS[i % len(COLOURS)], width)
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its format cannot hold this picture, .png can"
        raise RequestError(f"{path} cannot be written: {reason}", param="draw") from None


def _draw(pen: ImageDraw.ImageDraw, place: Box | XY, size: tuple[int, int], colour: str, width: int) -> None:
    across, down = size[0] - 1, size[1] - 1
    if isinstance(place, Box):
        left, right = sorted((place.x_min * across, place.x_max * across))
        top, bottom = sorted((place.y_min * down, place.y_max * down))
        pen.rectangle((left, top, right, bottom), outline=colour, width=width)
    else:
        x, y, radius = place.x * across, place.y * down, 2 * width
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white", width=width // 2)
