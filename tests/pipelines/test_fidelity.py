"""Fidelity: PSNR and SSIM against slow direct forms, and reports that compare with float at the same seed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.profile import Defaults, Fidelity
from pipelines.denoiser import DenoiserCall, TorchDenoiser
from pipelines.fidelity import EQUAL_DB, evaluate, psnr, ssim
from pipelines.load import load_components, load_denoiser
from pipelines.tiny import save_tiny


def slow_ssim(x: Tensor, y: Tensor) -> float:
    places = torch.arange(11.0, dtype=torch.float64) - 5
    line = torch.exp(-(places**2) / 4.5)
    window = line[:, None] * line[None, :] / line.sum() ** 2
    found = []
    for channel in range(x.shape[0]):
        for top in range(x.shape[1] - 10):
            for left in range(x.shape[2] - 10):
                a = x[channel, top : top + 11, left : left + 11].double()
                b = y[channel, top : top + 11, left : left + 11].double()
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                both = (window * (a - ma) * (b - mb)).sum()
                likeness = (2 * ma * mb + 1e-4) * (2 * both + 9e-4)
                found.append(float(likeness / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))))
    return math.fsum(found) / len(found)


def test_ssim_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 16, 14, generator=generator)
    y = (x + 0.2 * torch.randn(3, 16, 14, generator=generator)).clamp(0, 1)
    assert ssim(x, y) == pytest.approx(slow_ssim(x, y), abs=1e-9)
    assert ssim(x, x) == pytest.approx(1.0)
    assert 0.2 < ssim(x, y) < 0.95


def test_psnr_is_in_decibels() -> None:
    black = torch.zeros(3, 4, 4)
    assert psnr(black, torch.ones(3, 4, 4)) == 0.0
    assert psnr(black, torch.full((3, 4, 4), 0.1)) == pytest.approx(20.0)
    assert psnr(black, black) == EQUAL_DB


def test_pictures_must_be_comparable() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
    with pytest.raises(ValueError, match="at least 11 by 11"):
        ssim(torch.zeros(3, 8, 16), torch.zeros(3, 8, 16))


class Shifted(TorchDenoiser):
    """A denoiser that is off by one percent."""

    def run(self, call: DenoiserCall) -> Tensor:
        return super().run(call) * 1.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("stable-diffusion", tmp_path_factory.mktemp("models") / "tiny")


def test_profiles_are_compared_with_float_at_the_same_seed(folder: Path) -> None:
    components = load_components(folder)
    denoiser = load_denoiser(components)
    denoisers = {"float": TorchDenoiser("float", denoiser), "off": Shifted("off", denoiser)}
    told: list[tuple[str, int, int]] = []
    first, second = evaluate(
        components,
        denoisers,
        ["a b", "c"],
        Defaults(width=32, height=32, num_inference_steps=2, guidance_scale=3.0),
        seed=4,
        checker=lambda prompt, picture: prompt == "c" and picture.shape == (3, 32, 32),
        progress=lambda *facts: told.append(facts),
    )
    assert (first.profile, first.psnr_db, first.latent_error) == ("float", EQUAL_DB, 0.0)
    assert first.ssim == pytest.approx(1.0)
    assert second.profile == "off"
    assert 20 < second.psnr_db < 70
    assert 0.001 < second.latent_error < 0.1
    assert [row.seed for row in second.each] == [4, 5]
    assert second.prompt_accuracy == second.float_prompt_accuracy == 0.5
    assert second.weights_bytes == denoisers["off"].weights_bytes
    assert told[-1] == ("comparing", 2, 2)
    assert Fidelity(**second.summary()).psnr_db == second.psnr_db
    assert json.loads(json.dumps(second.as_json()))["each"][1]["prompt"] == "c"


def test_there_must_be_something_to_compare_with(folder: Path) -> None:
    components = load_components(folder)
    with pytest.raises(ValueError, match="needs a denoiser named 'float'"):
        evaluate(components, {}, ["a"], Defaults(width=32, height=32, num_inference_steps=1, guidance_scale=1.0))
