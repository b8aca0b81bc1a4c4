"""PSNR and SSIM against slow direct forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipelines.similarity import EQUAL_DB, psnr, ssim


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
