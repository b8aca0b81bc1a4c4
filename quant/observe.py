"""A streaming histogram of one layer's input, and the range that quantizes it best. Keeps counts, never tensors.

Bins are aligned to zero and their width is a power of two: when the range grows, neighbouring bins merge exactly, so
the result does not depend on the order or the batching in which the numbers came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quant.errors import CalibrationError
from quant.grid import Affine, affine_over

BINS = 2048
_CACHED = 1 << 18
"""Numbers that are counted at a time: few enough to stay in a core's cache."""
_FINEST = 20
"""A bin is never narrower than the largest magnitude times two to the minus this."""
_FLOOR = -120
"""The narrowest bin of all, used while nothing but zeros was seen."""
_SHARES = np.linspace(1.0, 0.05, 96)
"""Shares of an end of the range that the search tries as its clipping point."""

Search = Literal["minmax", "mse", "percentile"]
Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


def _empty() -> Counts:
    return np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class Histogram:
    """Counts of all numbers seen so far.

    Attributes:
        low, high: smallest and largest number seen; infinities while nothing was.
        exponent: bins are 2**exponent wide.
        start: bin i spans [(start + i) * width, (start + i + 1) * width).
        counts: [at most bins] int64.
        bins: the most bins that it may have.
    """

    low: float = math.inf
    high: float = -math.inf
    exponent: int = 0
    start: int = 0
    counts: Counts = field(default_factory=_empty)
    bins: int = BINS

    def add(self, values: Tensor) -> None:
        """Counts every number of a tensor of any shape.

        Raises:
            CalibrationError: a number is NaN or infinite.
        """
        flat = values.detach().flatten().to(device="cpu", dtype=torch.float32)
        if flat.numel() == 0:
            return
        low, high = (float(end) for end in flat.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError("the input holds NaN or infinity")
        self._widen(low, high)
        counts = torch.from_numpy(self.counts)
        for part in torch.split(flat, _CACHED):
            # exact in float32: the factor is a power of two, and bins are at most 2**_FINEST from zero; only what is
            # as small as to become zero must be told to lie below it
            scaled = part * 2.0**-self.exponent
            vanished = ((part < 0) & (scaled == 0)).float()
            places = scaled.floor_().sub_(vanished).sub_(self.start).to(torch.int32)
            counts += torch.bincount(places, minlength=len(counts))

    def merge(self, other: Histogram) -> None:
        """Counts everything that another histogram counted: exactly as if its numbers had come here, unless the other
        has fewer bins; then this one's get as wide as those.
        """
        if len(other.counts) == 0:
            return
        self._widen(other.low, other.high, other.exponent)
        places = ((other.start + np.arange(len(other.counts))) >> (self.exponent - other.exponent)) - self.start
        np.add.at(self.counts, places, other.counts)

    def _widen(self, low: float, high: float, least: int = _FLOOR) -> None:
        seen = len(self.counts) > 0
        if seen and self.low <= low and high <= self.high and least <= self.exponent:
            return
        low, high = min(self.low, low), max(self.high, high)
        exponent = max(_exponent(low, high, self.bins), least, self.exponent if seen else _FLOOR)
        start, stop = _bin(low, exponent), _bin(high, exponent) + 1
        counts = np.zeros(stop - start, dtype=np.int64)
        if seen:
            shift = exponent - self.exponent
            places = ((self.start + np.arange(len(self.counts))) >> shift) - start
            np.add.at(counts, places, self.counts)
        self.low, self.high, self.exponent, self.start, self.counts = low, high, exponent, start, counts

    @property
    def total(self) -> int:
        """How many numbers were counted."""
        return int(self.counts.sum())

    @property
    def centres(self) -> Numbers:
        """[bins] the middle of each bin."""
        return np.asarray((self.start + np.arange(len(self.counts)) + 0.5) * 2.0**self.exponent)

    @property
    def power(self) -> float:
        """Mean square of the numbers."""
        return float((self.counts * self.centres**2).sum() / max(1, self.total))


def _bin(value: float, exponent: int) -> int:
    return math.floor(value * 2.0**-exponent)


def _exponent(low: float, high: float, bins: int) -> int:
    """The smallest exponent whose bins cover [low, high] by at most `bins`, no finer than _FINEST allows."""
    largest = max(abs(low), abs(high))
    exponent = max(math.frexp(largest)[1] - _FINEST, _FLOOR) if largest > 0 else _FLOOR
    while _bin(high, exponent) - _bin(low, exponent) + 1 > bins:
        exponent += 1
    return exponent


def rounding_error(histogram: Histogram, grid: Affine, power: float = 2.0) -> float:
    """Mean of |x - Q(x)|**power over the counted numbers, taken at the middle of each bin."""
    centres = histogram.centres
    return _mean_error(centres, histogram.counts / max(1, histogram.total), grid, power)


def _mean_error(centres: Numbers, weights: Numbers, grid: Affine, power: float) -> float:
    integers = np.clip(np.rint(centres / grid.scale) + grid.zero_point, 0, grid.high)
    return float((weights * np.abs((integers - grid.zero_point) * grid.scale - centres) ** power).sum())


def best_grid(
    histogram: Histogram, bits: int, search: Search, *, power: float = 2.0, percentile: float = 99.99
) -> Affine:
    """The grid for what was counted: over all of it, over a percentile of it, or over the range of least error.

    Raises:
        CalibrationError: nothing was counted, or nothing but zeros.
    """
    try:
        if search == "percentile":
            return affine_over(*percentile_ends(histogram, percentile), bits)
        grid = affine_over(histogram.low, histogram.high, bits)
    except ValueError as error:
        raise CalibrationError(f"no range to quantize: {error}") from error
    return grid if search == "minmax" else _least_error(histogram, bits, power)


def percentile_ends(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range that leaves out (100 - percentile)% of the counted numbers at either end, to a bin's width."""
    shares = np.cumsum(histogram.counts) / max(1, histogram.total)
    tail = (100.0 - percentile) / 100.0
    first, last = int(np.searchsorted(shares, tail)), int(np.searchsorted(shares, 1.0 - tail))
    width = 2.0**histogram.exponent
    low, high = (histogram.start + first) * width, (histogram.start + last + 1) * width
    return max(low, histogram.low), min(high, histogram.high)


def _least_error(histogram: Histogram, bits: int, power: float) -> Affine:
    """Coordinate descent over the two ends of the range; each end moves inwards only from what was seen."""
    centres, weights = histogram.centres, histogram.counts / histogram.total
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(ends: tuple[float, float]) -> float:
        return _mean_error(centres, weights, affine_over(*ends, bits), power)

    best = (low, high)
    for _ in range(3):
        before = best
        best = min([(best[0], high * share) for share in _SHARES] if high > 0 else [best], key=error)
        best = min([(low * share, best[1]) for share in _SHARES] if low < 0 else [best], key=error)
        if best == before:
            break
    return affine_over(*best, bits)
