"""How alike two pictures are: PSNR and SSIM. Pure functions; must not know who made the pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EQUAL_DB = 100.0
"""PSNR that equal pictures count as, so that means stay finite; 8-bit pictures that differ at all stay below 97."""

SMALLEST_SIDE = 11
"""Pixels of the SSIM window's side: smaller pictures cannot be compared."""


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one shape, values 0..1; EQUAL_DB when they are equal.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(picture, truth)
    error = float((picture.double() - truth.double()).square().mean())
    return EQUAL_DB if error == 0 else min(EQUAL_DB, -10 * math.log10(error))


def ssim(picture: Tensor, truth: Tensor) -> float:
    """Structural similarity of two pictures [C, H, W], values 0..1, by Wang et al. (2004): a Gaussian window of 11
    pixels and sigma 1.5, only where it fits whole, mean over places and channels.

    Raises:
        ValueError: the shapes differ, or a side is shorter than 11.
    """
    _require_same_shape(picture, truth)
    if picture.ndim != 3 or min(picture.shape[1:]) < SMALLEST_SIDE:
        raise ValueError(f"SSIM compares pictures [C, H, W] of at least 11 by 11, not {list(picture.shape)}")
    x, y = picture.double()[:, None], truth.double()[:, None]
    window = _gaussian(SMALLEST_SIDE, 1.5)

    def blur(values: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(values, window[None, None, :, None]), window[None, None, None, :])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    both = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _gaussian(size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return weights / weights.sum()


def _require_same_shape(picture: Tensor, truth: Tensor) -> None:
    if picture.shape != truth.shape:
        raise ValueError(f"pictures of shapes {list(picture.shape)} and {list(truth.shape)} cannot be compared")
