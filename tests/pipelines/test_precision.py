"""What a profile decodes in changes its pictures a little, and nothing before them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults
from pipelines import precision
from pipelines.denoiser import TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.load import load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.precision import decoding_in
from pipelines.quantized import load_profile
from pipelines.session import DirectSeams, Order, Session
from pipelines.tiny import FAMILIES, save_tiny
from pipelines.tiny_videos import VIDEO_FAMILIES, save_tiny_video
from quant.backends.runtime import has_bfloat16
from quant.recipe_parts import FloatIn

FORMATS: tuple[FloatIn, ...] = ("float32", "bfloat16")


def drawn_by(folder: Path, order: Order, decode_in: FloatIn) -> tuple[Tensor, Tensor | None]:
    """Pictures, and the latents that they were decoded from."""
    components = load_components(folder)
    seams = DirectSeams(TorchDenoiser("float", load_denoiser(components)))
    session = Session(components, order, seams, decode_in=decode_in)
    return session.draw(), session.latents


def assert_near(folder: Path, order: Order, most: float = 0.01) -> None:
    (full, before), (half, latents) = (drawn_by(folder, order, one) for one in FORMATS)
    assert before is not None and latents is not None
    assert torch.equal(before, latents), "only decoding differs"
    assert half.dtype == torch.float32 and half.shape == full.shape
    error = float((half - full).abs().mean())
    assert error < most
    assert (error > 0) == has_bfloat16()


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_every_family(family: str, tmp_path: Path) -> None:
    assert_near(save_tiny(family, tmp_path / family), Order("a red box", "", 48, 32, 3, 3.0, [5, 6]))


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_videos_of_every_family(family: str, tmp_path: Path) -> None:
    order = Order("a red box", "", 64, 32, 2, 3.0, [5], frames=9, fps=8)
    assert_near(save_tiny_video(family, tmp_path / family), order)


def test_without_units_it_is_float32_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    with decoding_in("bfloat16", torch.zeros(1)):
        assert not torch.is_autocast_enabled("cpu")
    assert "no units" in caplog.text


@pytest.mark.parametrize(("asked", "dtype"), [("float32", torch.float32), ("bfloat16", torch.float16)])
def test_nothing_changes_where_nothing_is_asked_or_the_bits_are_half_already(
    asked: FloatIn, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    with decoding_in(asked, torch.zeros(1, dtype=dtype)):
        assert not torch.is_autocast_enabled("cpu")
    assert not caplog.records


@pytest.mark.parametrize("name", ["w8a8", "float-cfg"])
def test_an_artifact_says_it(name: str, tmp_path: Path) -> None:
    folder, out = save_tiny("stable-diffusion", tmp_path / "sd"), tmp_path / name
    settings = Defaults(width=32, height=32, num_inference_steps=8, guidance_scale=4.0)
    drawn = {}
    for asked in FORMATS:
        recipe = quant.load_recipe(name).model_copy(update={"decode_in": asked})
        order = QuantizationOrder(folder, out, recipe, ["a red box", "two blue"], settings, model="sd")
        card = Manifest.read(quantize_folder(order)).card(out)
        components = load_components(folder)
        denoiser = load_profile(card, components, quant.Options(tmp_path / "cache"))
        assert denoiser.decode_in == asked
        drawn[asked] = draw_batch(components, denoiser, ["a big cat"], [7], settings)
    assert torch.equal(drawn["float32"].latents[-1], drawn["bfloat16"].latents[-1])
    assert torch.equal(drawn["float32"].pictures, drawn["bfloat16"].pictures) != has_bfloat16()
