"""Numbers to integers and back: affine grids for activations, symmetric per-channel grids for weights. Pure functions.

A grid maps a real x to the integer q = clamp(round(x / scale) + zero_point, low, high) and back to
(q - zero_point) * scale, rounding half to even. Zero is always a point of the grid, so padding stays exact.
Weights use a symmetric grid without its most negative integer (s8: -127..127), one scale per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLIP_RATIOS = tuple(1.0 - 0.02 * step for step in range(26))
"""Shares of a channel's largest weight that the search tries as its clipping point: 1.00 down to 0.50."""


@dataclass(frozen=True, slots=True)
class Affine:
    """An unsigned per-tensor grid.

    Attributes:
        scale: distance between neighbouring points, exactly representable in float32, positive.
        zero_point: the integer that stands for zero, 0 .. 2**bits - 1.
        bits: width of the integers, 2 to 8.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def high(self) -> int:
        """The largest integer of the grid; the smallest is 0."""
        return (1 << self.bits) - 1


def affine_over(low: float, high: float, bits: int) -> Affine:
    """The grid whose points span [low, high], widened to hold zero.

    Raises:
        ValueError: the widened interval is empty or not finite.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not np.isfinite(high - low) or high <= low:
        raise ValueError(f"no grid spans [{low}, {high}]: it must be finite and wider than zero")
    levels = (1 << bits) - 1
    scale = float(np.float32((high - low) / levels))
    if scale < float(np.finfo(np.float32).tiny):
        raise ValueError(f"no grid spans [{low}, {high}]: its points would be closer than float32 can tell")
    return Affine(scale, min(levels, max(0, round(-low / scale))), bits)


def fake_quantize(values: Tensor, grid: Affine) -> Tensor:
    """`values` (any shape, float32) rounded to points of the grid, as float32 of the same shape."""
    return torch.fake_quantize_per_tensor_affine(values, grid.scale, grid.zero_point, 0, grid.high)


def symmetric_high(bits: int) -> int:
    """The largest integer of a symmetric grid of that width: 127 for 8 bits."""
    return (1 << (bits - 1)) - 1


def weight_scales(weight: Tensor, bits: int, search: str) -> Tensor:
    """Scales [out] float32 of a weight [out, ...], one per output channel.

    `search` is "max" (the largest weight is the last point of the grid) or "mse" (the clipping point among
    CLIP_RATIOS of it with the least squared error; the larger one on a tie). A channel of zeros gets scale 1.

    Raises:
        ValueError: the weight holds NaN or infinity, or `search` is neither of the two.
    """
    if search not in ("max", "mse"):
        raise ValueError(f"weight ranges are found by 'max' or 'mse', not by {search!r}")
    rows = weight.detach().float().flatten(1)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("the weight holds NaN or infinity")
    peak = rows.abs().amax(1)
    full = torch.where(peak > 0, peak / symmetric_high(bits), torch.ones_like(peak))
    if search == "max":
        return full
    best, least = full, _squared_error(rows, full, bits)
    for ratio in CLIP_RATIOS[1:]:
        error = _squared_error(rows, full * ratio, bits)
        best = torch.where(error < least, full * ratio, best)
        least = torch.minimum(error, least)
    return best


def _squared_error(rows: Tensor, scales: Tensor, bits: int) -> Tensor:
    high, column = symmetric_high(bits), scales[:, None]
    rounded = (rows / column).round_().clamp_(-high, high).mul_(column)
    return rounded.sub_(rows).square_().sum(1)


def to_integers(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """A weight [out, ...] float32 as int8 integers of the same shape, by one scale per output channel [out]."""
    high = symmetric_high(bits)
    return (weight.detach().float() / along_channels(scales, weight)).round().clamp(-high, high).to(torch.int8)


def from_integers(integers: Tensor, scales: Tensor) -> Tensor:
    """int8 integers [out, ...] back to float32, by one scale per output channel [out]."""
    return integers.to(torch.float32) * along_channels(scales, integers)


def along_channels(scales: Tensor, weight: Tensor) -> Tensor:
    """Scales [out] shaped [out, 1, ...] so that they multiply a weight [out, ...]."""
    return scales.view(-1, *[1] * (weight.ndim - 1))
