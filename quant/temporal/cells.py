"""Histograms side by side, and for all of them the scales and the one zero point of least error. Knows no time.

A grid maps x to Q(x) = s (clamp(round(x / s) + z, 0, 2^b - 1) - z). Errors are means of |x - Q(x)|^p over what each
histogram counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from quant.observe import Histogram, percentile_ends
from quant.recipe import Activations

SHARES = tuple(1.12 - 0.015 * step for step in range(72))
"""Of the scale that covers all of a cell to half a step: candidates for its own."""
_BINS = 512
"""More take longer and change the least error by less than a hundredth."""


def shares_of(activations: Activations) -> tuple[float, ...]:
    """Candidates for scales: many where the range of least error is asked for, else the one that covers all."""
    return SHARES if activations.range == "mse" else (1.0,)


@dataclass(frozen=True, slots=True)
class Cells:
    """Several histograms side by side.

    Attributes:
        edges: [cells, bins + 1] float32, ends of neighbouring bins; the last one is repeated as padding.
        weights: [cells, bins] float32, share of the numbers in each bin.
        low, top: [cells] float32, the ends that a grid without clipping spans; low <= 0 <= top.
        high: the grid's largest integer.
        power: p of the error.
    """

    edges: Tensor
    weights: Tensor
    low: Tensor
    top: Tensor
    high: int
    power: float

    @classmethod
    def of(cls, histograms: Sequence[Histogram], activations: Activations) -> Cells:
        """The cells of some histograms; those of more than _BINS bins count with wider ones."""
        coarse = [_coarse(histogram) for histogram in histograms]
        bins = max(len(histogram.counts) for histogram in coarse)
        edges, weights = torch.zeros(len(coarse), bins + 1), torch.zeros(len(coarse), bins)
        for row, histogram in enumerate(coarse):
            places = histogram.start + torch.arange(bins + 1).clamp(max=len(histogram.counts))
            edges[row] = places * 2.0**histogram.exponent
            weights[row, : len(histogram.counts)] = torch.from_numpy(histogram.counts / histogram.total)
        ends = torch.tensor([_ends(histogram, activations) for histogram in histograms], dtype=torch.float32)
        return cls(edges, weights, ends[:, 0], ends[:, 1], (1 << activations.bits) - 1, activations.power)

    def take(self, index: list[int]) -> Cells:
        """Some of the cells."""
        low, top = self.low[index], self.top[index]
        return Cells(self.edges[index], self.weights[index], low, top, self.high, self.power)

    def covering(self, zero_point: int) -> Tensor:
        """[cells] the smallest scales at which no end is further than half a step from the grid."""
        return torch.maximum(-self.low / (zero_point + 0.5), self.top / (self.high - zero_point + 0.5))

    def errors(self, scales: Tensor, zero_point: int) -> Tensor:
        """[cells] mean of |x - Q(x)|**power, numbers lying evenly within their bins.

        With n = Q(x) / s and r = x / s - n, the integral of |r|^p is n h + sign(r) |r|^(p + 1) / (p + 1), h that of a
        whole step, 2 (1/2)^(p + 1) / (p + 1). Bins about as wide as a step would mislead at their middles.
        """
        more = self.power + 1.0
        places = self.edges / scales[:, None]
        nearest = places.round().clamp_(-zero_point, self.high - zero_point)
        missed = places.sub_(nearest)
        part = missed.square().mul_(missed) if self.power == 2.0 else missed.abs().pow_(more).copysign_(missed)
        area = part.diff(dim=1).add_(nearest.diff(dim=1), alpha=2.0 * 0.5**more).div_(more)
        steps = (self.edges[:, 1:2] - self.edges[:, :1]) / scales[:, None]
        return (area * self.weights).sum(1) / steps[:, 0] * scales**self.power


def _coarse(histogram: Histogram) -> Histogram:
    if len(histogram.counts) <= _BINS:
        return histogram
    whole = Histogram(bins=_BINS)
    whole.merge(histogram)
    return whole


def _ends(histogram: Histogram, activations: Activations) -> tuple[float, float]:
    low, top = histogram.low, histogram.high
    if activations.range == "percentile":
        low, top = percentile_ends(histogram, activations.percentile)
    if min(low, 0.0) == max(top, 0.0):  # all between the percentiles is zero: nothing can be left out
        low, top = histogram.low, histogram.high
    return min(low, 0.0), max(top, 0.0)


def least_errors(cells: Cells, zero_point: int, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """[cells] least error, and the scale that has it, the larger one on a tie."""
    full = cells.covering(zero_point)
    best, least = full, torch.full_like(full, math.inf)
    for share in shares:
        error = cells.errors(full * share, zero_point)
        best = torch.where(error < least, full * share, best)
        least = torch.minimum(error, least)
    return least, best


def best_zero_point(cells: Cells, shares: Sequence[float]) -> int:
    """The zero point of least total error: a coarse look everywhere, steps that halve around the best, a close look."""
    if not bool((cells.low < 0).any()):
        return 0
    if not bool((cells.top > 0).any()):
        return cells.high
    totals: dict[int, float] = {}

    def error(zero_point: int) -> float:
        if zero_point not in totals:
            totals[zero_point] = _total(cells, zero_point, shares[::8])
        return totals[zero_point]

    coarse = _coarse_points(cells.high)
    best = min(coarse, key=error)
    stride = max(after - before for before, after in pairwise(coarse)) // 2
    while stride >= 1:
        around = (best, max(0, best - stride), min(cells.high, best + stride))
        best = min(around, key=error)
        stride //= 2
    finalists = sorted(totals, key=error)[:4]
    return min(finalists, key=lambda zero_point: _total(cells, zero_point, shares[::2]))


def _total(cells: Cells, zero_point: int, shares: Sequence[float]) -> float:
    return float(least_errors(cells, zero_point, shares)[0].double().sum())


def _coarse_points(high: int) -> list[int]:
    """Zero points to look at first: all of a small grid, else closer together towards the ends."""
    if high <= 31:
        return list(range(high + 1))
    half = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    return sorted({place for value in half if value <= high for place in (value, high - value)})
