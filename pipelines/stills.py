"""What a video is known by before it is played: one frame of it, and a sheet of many. Knows pictures only."""

from __future__ import annotations

import math

from PIL import Image
from torch import Tensor

from pipelines.media import to_image

THUMBNAIL_SIDE = 320
SHEET_FRAMES = 16
SHEET_SIDE = 160


def thumbnail(frames: Tensor) -> Image.Image:
    """The middle frame of a video [F, 3, H, W] in 0..1, at most 320 pixels wide and high."""
    return _small(frames[len(frames) // 2], THUMBNAIL_SIDE)


def spritesheet(frames: Tensor) -> Image.Image:
    """Up to 16 frames of a video [F, 3, H, W] in 0..1, evenly spread, row by row; each at most 160 pixels a side."""
    count = min(SHEET_FRAMES, len(frames))
    chosen = [round(place * (len(frames) - 1) / max(1, count - 1)) for place in range(count)]
    tiles = [_small(frames[number], SHEET_SIDE) for number in chosen]
    columns = math.ceil(math.sqrt(count))
    width, height = tiles[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * width, place // columns * height))
    return sheet


def _small(frame: Tensor, side: int) -> Image.Image:
    picture = to_image(frame)
    picture.thumbnail((side, side))
    return picture
