"""Files carry what made them, survive what prompts can hold, and are the same bytes each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.media import PREVIEW_SIDE, Format, encode, encode_preview, read_facts, to_image

FACTS = {"prompt": 'a "red" box\nand ünïcødé 🦊', "seed": 7, "guidance_scale": 4.0}
PICTURE = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_facts_come_back_and_bytes_repeat(output_format: Format) -> None:
    data = encode(to_image(PICTURE), output_format, None, FACTS)
    assert read_facts(data) == FACTS
    assert data == encode(to_image(PICTURE), output_format, None, FACTS)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (output_format.upper(), (40, 24))


def test_png_keeps_every_level() -> None:
    data = encode(to_image(PICTURE), "png", None, {})
    with Image.open(io.BytesIO(data)) as image:
        expected = (PICTURE * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(image, dtype=np.float32), expected)


def test_quality_makes_smaller_files_and_png_takes_none() -> None:
    image = to_image(PICTURE)
    assert len(encode(image, "jpeg", 10, {})) < len(encode(image, "jpeg", 95, {}))
    with pytest.raises(ValueError, match="lossless"):
        encode(image, "png", 50, {})


def test_foreign_files_have_no_facts() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    assert read_facts(buffer.getvalue()) is None


def test_previews_are_small() -> None:
    with Image.open(io.BytesIO(encode_preview(torch.rand(2, 3, 512, 300)))) as image:
        assert (image.format, image.size) == ("WEBP", (300, PREVIEW_SIDE))
