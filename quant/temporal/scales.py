"""Activation grids that follow time: for inputs of a finite set, and for all others. Must not know models or layers.

Finite set calibration (FSC; Huang et al., TFMQ-DM, CVPR 2024, section 4.2). The input of a temporal layer takes one
value x_t for each timestep t of a schedule, so every t gets a grid of its own:

    x^_t = clamp(round(x_t / s_t) + z_t, 0, 2^b - 1),    Q(x_t) = s_t (x^_t - z_t)
    (s_t, z_t) = the grid over [r min(x_t, 0), r max(x_t, 0)] with r in {1.00, 0.99, ... 0.21} of least |x_t - Q(x_t)|^p

The published search (80 ratios, p = 2.4) unchanged, all slots at once.

Everything else (x depends on the picture too) has, as in TFMQ-DM's released code, ranges of its own at each step, from
histograms. What we changed: one zero point z per layer for all steps and branches, only the scale follows time,

    s_c = argmin_s E_c |x - Q_{s,z}(x)|^p for each cell c = (step, branch),  z = argmin_z sum_c E_c |x - Q_{s_c,z}(x)|^p

so a layer divides its input by s_c, rounds it on one grid, and needs no weights that depend on time. Steps of one range
of time may share a cell (TQ-DiT's time groups; quant.ranges says which).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quant.clock import BRANCHES, COND, UNCOND
from quant.errors import CalibrationError
from quant.observe import Histogram
from quant.recipe import FLOAT_BITS, Activations
from quant.temporal.cells import Cells, best_zero_point, least_errors, shares_of

PUBLISHED_POWER = 2.4
"""p of TFMQ-DM's range search."""
CLIP_RATIOS = tuple(1.0 - 0.01 * step for step in range(80))
_TINY = torch.finfo(torch.float32).tiny

Cell = tuple[int, int]
"""Slot and branch."""


def finite_set_grids(x: Tensor, bits: int, power: float = PUBLISHED_POWER) -> tuple[Tensor, Tensor]:
    """FSC: a grid for each slot of a finite set of inputs.

    A slot whose inputs are all zero gets the grid over the range of all slots together, which holds zero exactly.

    Args:
        x: [slots, ...] all inputs that a layer gets at each slot.
        bits: width of the unsigned integers.
        power: p of the error.

    Returns:
        scales [slots] float32 and zero points [slots] int32.

    Raises:
        CalibrationError: an input is NaN or infinite, or all of them are zero.
    """
    points, high = x.detach().float().flatten(1), (1 << bits) - 1
    if not bool(torch.isfinite(points).all()):
        raise CalibrationError("the finite set of inputs holds NaN or infinity")
    full, zero_points = _grids_over(points.amin(1), points.amax(1), high)
    best, least = full, torch.full_like(full, math.inf)
    for ratio in CLIP_RATIOS:
        error = _set_error(points, full * ratio, zero_points, high, power)
        best = torch.where(error < least, full * ratio, best)
        least = torch.minimum(error, least)
    return best, zero_points.to(torch.int32)


def _grids_over(low: Tensor, top: Tensor, high: int) -> tuple[Tensor, Tensor]:
    """Scales and zero points [slots] of grids over [low, top], widened to hold zero; empty ones over all of them."""
    low, top = low.clamp(max=0.0), top.clamp(min=0.0)
    empty = (top - low) / high < _TINY
    low, top = torch.where(empty, low.min(), low), torch.where(empty, top.max(), top)
    scales = (top - low) / high
    if bool((scales < _TINY).any()):
        raise CalibrationError("no range to quantize: the finite set holds nothing but zeros")
    return scales, (-low / scales).round().clamp(0, high)


def _set_error(points: Tensor, scales: Tensor, zero_points: Tensor, high: int, power: float) -> Tensor:
    return (round_set(points, scales, zero_points, high) - points).abs().pow(power).sum(1)


def round_set(points: Tensor, scales: Tensor, zero_points: Tensor, high: int) -> Tensor:
    """Q(x) of points [slots, n], by a scale and a zero point for each slot and integers 0 .. high."""
    scale, zero_point = scales[:, None], zero_points[:, None]
    integers = ((points / scale).round() + zero_point).clamp(0, high)
    return (integers - zero_point) * scale


def time_grids(
    each: Mapping[Cell, Histogram],
    total: Histogram,
    slots: int,
    activations: Activations,
    ranges: Sequence[Sequence[int]] = (),
) -> tuple[Tensor, int]:
    """Scales for each slot and branch, and the one zero point that goes with all of them.

    The branch UNKNOWN, and a branch that was not seen at a slot, get the scale for all that was seen at that slot (the
    union). A slot at which nothing was seen, or nothing but zeros, gets the scale for the layer's whole input.
    `activations.range` is "minmax" (the smallest scale that leaves no number further than half a step from the grid),
    "percentile" (the same over percentiles), or "mse" (the least mean of |x - Q(x)|**power). The zero point is that
    of the least sum of those means over the cells that were asked for.

    Args:
        each: what was seen in each cell (slot, branch); cells may be missing.
        total: all that was seen.
        slots: number of rows of the result.
        activations: bits and range; whether steps and branches have scales of their own ("each") or share one.
        ranges: the slots of each range of time, where `activations.steps` is "ranges": those share a scale.

    Returns:
        scales [slots, BRANCHES] float32, and the zero point.

    Raises:
        CalibrationError: nothing but zeros was seen, or the activations are to stay float.
        ValueError: a cell names a slot that is not there, or the ranges do not have each slot once.
    """
    _check(each, slots, activations)
    groups = groups_of(slots, activations, ranges)
    layout = _laid_out(_merged(each, groups), total, len(groups), activations)
    cells = Cells.of(layout.histograms, activations)
    shares = shares_of(activations)
    zero_point = best_zero_point(cells.take(sorted(layout.counted)), shares)
    scales = least_errors(cells, zero_point, shares)[1][layout.table]
    table = torch.empty(slots, BRANCHES)
    for group, own in enumerate(groups):
        table[list(own)] = scales[group]
    return table, zero_point


def groups_of(slots: int, activations: Activations, ranges: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The slots that share a scale.

    Raises:
        ValueError: the ranges do not have each slot once.
    """
    ways: dict[str, list[Sequence[int]]] = {
        "shared": [range(slots)],
        "each": [[slot] for slot in range(slots)],
        "ranges": [own for own in ranges if own],
    }
    groups = ways[activations.steps]
    if sorted(slot for own in groups for slot in own) != list(range(slots)):
        raise ValueError(f"ranges must have each of {slots} slots once, got {groups}")
    return groups


def union(histograms: Iterable[Histogram]) -> Histogram:
    """One histogram of all that several counted."""
    whole = Histogram()
    for histogram in histograms:
        whole.merge(histogram)
    return whole


def _check(each: Mapping[Cell, Histogram], slots: int, activations: Activations) -> None:
    if activations.bits == FLOAT_BITS:
        raise CalibrationError("no grids for activations that stay float")
    strange = sorted(cell for cell in each if not (0 <= cell[0] < slots and 0 <= cell[1] < BRANCHES))
    if strange:
        raise ValueError(f"cells must be (slot below {slots}, branch below {BRANCHES}), got {strange[:5]}")


def _merged(each: Mapping[Cell, Histogram], groups: Sequence[Sequence[int]]) -> dict[Cell, Histogram]:
    """What was seen in each group and branch."""
    found = {}
    for group, own in enumerate(groups):
        for branch in range(BRANCHES):
            seen = [each[slot, branch] for slot in own if (slot, branch) in each]
            if seen:
                found[group, branch] = seen[0] if len(seen) == 1 else union(seen)
    return found


@dataclass(slots=True)
class _Layout:
    """The histograms that get a scale each, the first being the layer's whole input, and where the scales go.

    Attributes:
        table: [slots, BRANCHES] int64, index into `histograms`.
        counted: indices of those by whose error the zero point is chosen.
    """

    histograms: list[Histogram]
    table: Tensor
    counted: set[int] = field(default_factory=set)

    def place(self, histogram: Histogram, high: int) -> int:
        """The index of a histogram, put in if its range is wider than zero; else that of the whole input."""
        if _is_empty(histogram, high):
            return 0
        self.histograms.append(histogram)
        return len(self.histograms) - 1


def _is_empty(histogram: Histogram, high: int) -> bool:
    return len(histogram.counts) == 0 or (max(histogram.high, 0.0) - min(histogram.low, 0.0)) / high < _TINY


def _laid_out(each: Mapping[Cell, Histogram], total: Histogram, slots: int, activations: Activations) -> _Layout:
    high = (1 << activations.bits) - 1
    if _is_empty(total, high):
        raise CalibrationError("no range to quantize: the layer was fed nothing, or nothing but zeros")
    layout = _Layout([total], torch.zeros(slots, BRANCHES, dtype=torch.int64))
    for slot in range(slots):
        seen = {branch: each[slot, branch] for branch in range(BRANCHES) if (slot, branch) in each}
        layout.table[slot] = together = layout.place(union(seen.values()), high)
        own = [branch for branch in (UNCOND, COND) if branch in seen and len(seen) > 1]
        if activations.branches == "shared" or not own:
            layout.counted.add(together)
            continue
        for branch in own:
            layout.table[slot, branch] = place = layout.place(seen[branch], high)
            layout.counted.add(place)
    layout.counted = (layout.counted - {0}) or {0}
    return layout
