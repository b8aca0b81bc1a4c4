"""Pictures as bytes: PNG, WebP and JPEG with what made them inside, and small previews.

The same picture and facts give the same bytes. Must not know jobs, files or pipelines.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

Format = Literal["png", "webp", "jpeg"]

MIME: Mapping[str, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
KEY = "halftone"
"""The PNG text chunk, and the one key of the JSON object in EXIF, under which the facts lie."""

DEFAULT_QUALITY = 90
PREVIEW_SIDE = 256
PREVIEW_QUALITY = 80
_EXIF_IMAGE_DESCRIPTION = 0x010E


def to_image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] of floats in 0..1 as 8-bit RGB, rounded to nearest."""
    levels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu()
    return Image.fromarray(levels.numpy())


def encode(image: Image.Image, output_format: Format, quality: int | None, facts: Mapping[str, Any]) -> bytes:
    """The file's bytes. `quality` is 0 to 100 for webp and jpeg (default 90); png is lossless.

    Raises:
        ValueError: a quality was given for png.
    """
    text = json.dumps(dict(facts), sort_keys=True)
    buffer = io.BytesIO()
    if output_format == "png":
        if quality is not None:
            raise ValueError("png is lossless and takes no quality")
        chunks = PngInfo()
        chunks.add_text(KEY, text)
        image.save(buffer, "PNG", pnginfo=chunks)
    else:
        exif = Image.Exif()
        exif[_EXIF_IMAGE_DESCRIPTION] = json.dumps({KEY: dict(facts)}, sort_keys=True)
        image.save(buffer, output_format.upper(), quality=DEFAULT_QUALITY if quality is None else quality, exif=exif)
    return buffer.getvalue()


def read_facts(data: bytes) -> dict[str, Any] | None:
    """What `encode` wrote into a file, or None where nothing of ours is in it."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            text = image.info.get(KEY)
            found = {} if text is None else {KEY: json.loads(text)}
        else:
            text = image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
            found = json.loads(text) if isinstance(text, str) and text.startswith("{") else {}
    facts = found.get(KEY)
    return facts if isinstance(facts, dict) else None


def encode_preview(pictures: Tensor) -> bytes:
    """A small WebP of pictures [n, 3, H, W] in 0..1 side by side, at most 256 pixels high and wide each."""
    images = [to_image(picture) for picture in pictures]
    for image in images:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        strip.paste(image, (place * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=PREVIEW_QUALITY)
    return buffer.getvalue()
