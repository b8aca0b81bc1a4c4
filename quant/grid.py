"""Numbers to integers and back: affine grids for activations, signed per-channel grids for weights. Pure functions.

A grid maps a real x to the integer q = clamp(round(x / scale) + zero_point, low, high) and back to
(q - zero_point) * scale, rounding half to even. Zero is always a point of the grid, so padding stays exact.
Weights use a signed grid around zero, one scale per output channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_CACHED = 1 << 16
"""Weights that the search works on at a time: few enough to stay in a core's cache."""


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


def integer_range(bits: int) -> tuple[int, int]:
    """(smallest, largest) integer of a weight of that width: -127..127 for 8 bits, -8..7 for 4.

    Eight bits go without -128, which kernels of int8 dot products may not take and which costs next to nothing; fewer
    bits cannot spare a value.
    """
    high = (1 << (bits - 1)) - 1
    return (-high if bits == 8 else -high - 1), high


def weight_scales(weight: Tensor, bits: int, search: str) -> Tensor:
    """Scales [out] float32 of a weight [out, ...], one per output channel.

    `search` is "max" (the finest grid that no weight lies beyond) or "mse" (that grid, or the one shrunk by the share
    among clip_ratios with the least squared error; the larger one on a tie). A channel of zeros gets scale 1.

    Raises:
        ValueError: the weight holds NaN or infinity, or `search` is neither of the two.
    """
    if search not in ("max", "mse"):
        raise ValueError(f"weight ranges are found by 'max' or 'mse', not by {search!r}")
    rows = weight.detach().float().flatten(1)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("the weight holds NaN or infinity")
    low, high = integer_range(bits)
    reach = torch.maximum(rows.amax(1) / high, rows.amin(1) / low)
    full = torch.where(reach > 0, reach, torch.ones_like(reach))
    if search == "max":
        return full
    few = max(1, _CACHED // max(1, rows.shape[1]))
    return torch.cat(
        [_least_error(*part, bits) for part in zip(torch.split(rows, few), torch.split(full, few), strict=True)]
    )


def clip_ratios(bits: int) -> tuple[float, ...]:
    """Shares of the grid without clipping that the search tries: 1.00 down to 0.50, or to 0.21 below 8 bits.

    Coarse grids gain from clipping much more; theirs are TFMQ-DM's 80 shares.
    """
    return tuple(1.0 - 0.02 * step for step in range(26)) if bits == 8 else tuple(1 - 0.01 * step for step in range(80))


def _least_error(rows: Tensor, full: Tensor, bits: int) -> Tensor:
    best, least = full, _squared_error(rows, full, bits)
    for ratio in clip_ratios(bits)[1:]:
        error = _squared_error(rows, full * ratio, bits)
        best = torch.where(error < least, full * ratio, best)
        least = torch.minimum(error, least)
    return best


def _squared_error(rows: Tensor, scales: Tensor, bits: int) -> Tensor:
    column = scales[:, None]
    rounded = (rows / column).round_().clamp_(*integer_range(bits)).mul_(column)
    return rounded.sub_(rows).square_().sum(1)


def to_integers(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """A weight [out, ...] float32 as int8 integers of the same shape, by one scale per output channel [out]."""
    places = weight.detach().float() / along_first(scales, weight)
    return places.round().clamp(*integer_range(bits)).to(torch.int8)


def from_integers(integers: Tensor, scales: Tensor) -> Tensor:
    """int8 integers [out, ...] back to float32, by one scale per output channel [out]."""
    return integers.to(torch.float32) * along_first(scales, integers)


def along_first(values: Tensor, like: Tensor) -> Tensor:
    """Values [n] shaped [n, 1, ...] so that they multiply a tensor [n, ...]: a weight's channels, or a call's rows."""
    return values.view(-1, *[1] * (like.ndim - 1))


def pack4(integers: Tensor) -> Tensor:
    """int8 integers of n numbers in -8..7, any shape, as uint8 [ceil(n / 2)]: the first of two in the low half.

    Raises:
        ValueError: an integer does not fit in four bits.
    """
    flat = integers.detach().flatten()
    low, high = integer_range(4)
    if flat.numel() and (int(flat.min()) < low or int(flat.max()) > high):
        raise ValueError(f"four bits hold {low}..{high}; the integers span {int(flat.min())}..{int(flat.max())}")
    halves = torch.nn.functional.pad(flat.to(torch.uint8) & 15, (0, flat.numel() % 2)).view(-1, 2)
    return halves[:, 0] | (halves[:, 1] << 4)


def unpack4(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """What pack4 packed: int8 of that shape.

    Raises:
        ValueError: that many numbers take another number of bytes.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((count + 1) // 2,):
        expected = f"uint8 [{(count + 1) // 2}]"
        raise ValueError(f"{count} integers of four bits take {expected}, not {packed.dtype} {list(packed.shape)}")
    halves = torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:count].to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves).view(*shape)
