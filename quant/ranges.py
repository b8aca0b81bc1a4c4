"""Divides a schedule into ranges of time: equal ones, given ones, or the fewest by calibrated error. Knows no layers.

Equal and given ranges are those of TR-DQ and ViDiT-Q (`timerange` in their code), which differ in what a recipe says.
By error, ours: the fewest ranges of neighbouring steps whose errors add up to at most (1 + tolerance) times those of a
range for each step, found exactly by dynamic programming:

    best[k][j] = min over i of best[k - 1][i - 1] + errors[i][j],    errors[i][j] that of one grid for the steps i..j
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quant.errors import CalibrationError
from quant.recipe_parts import SPAN, Ranges

Errors = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TimeRanges:
    """A schedule in ranges.

    Attributes:
        slots: of each range that was asked for, least timesteps first; within a range as they are sampled. Empty where
            no step of the schedule falls into a range.
        notes: for people.
    """

    slots: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[tuple[int, ...], ...]:
        """The ranges that hold steps."""
        return tuple(own for own in self.slots if own)

    def places(self) -> Tensor:
        """[slots] int64: which of the used ranges each slot is in."""
        places = torch.zeros(sum(map(len, self.used)), dtype=torch.int64)
        for place, own in enumerate(self.used):
            places[list(own)] = place
        return places


def ranges_of(ranges: Ranges, schedule: Sequence[float], errors: Errors | None = None) -> TimeRanges:
    """The ranges of a schedule.

    Args:
        ranges: how to divide it.
        schedule: timestep of each slot. For equal and given ranges on the scale of 0 to SPAN, or of 0 to 1.
        errors: for `dp`, [n, n]: at [i, j], i <= j, that of one grid for the steps i to j in order of timesteps.

    Raises:
        CalibrationError: there is no timestep, or timesteps are on no scale that ranges are told in.
        ValueError: errors are missing, or of another number of steps.
    """
    if not schedule:
        raise CalibrationError("no argument is a timestep: there is no time to divide into ranges")
    if ranges.method == "dp":
        return _fewest(ranges, in_order(schedule), errors)
    firsts = [float(first) for first, _ in sorted(ranges.bounds)]
    if ranges.method == "uniform":
        firsts = [SPAN * part / ranges.count for part in range(ranges.count)]
    places = np.searchsorted(np.array(firsts), _on_scale(schedule), side="right") - 1
    slots = tuple(tuple(np.flatnonzero(places == place).tolist()) for place in range(len(firsts)))
    empty = sum(not own for own in slots)
    note = f"ranges of time: {len(slots)}" + (f", of which {empty} hold none of the calibrated steps" if empty else "")
    return TimeRanges(slots, (note,))


def in_order(schedule: Sequence[float]) -> list[int]:
    """Slots by timestep, the least first."""
    return sorted(range(len(schedule)), key=lambda slot: schedule[slot])


def _on_scale(schedule: Sequence[float]) -> Errors:
    """Timesteps as parts of 0 to SPAN; models of which none is above 1 take them as parts of 1."""
    least, most = min(schedule), max(schedule)
    if least < 0 or most > SPAN:
        raise CalibrationError(
            f"timesteps from {least:g} to {most:g} do not lie in 0 to {SPAN}, in which ranges are told: "
            'take ranges of method "dp", which need no scale'
        )
    # rounded, or 950 that came as 0.95 in float32 would lie below 950
    return np.round(np.array(schedule) * SPAN, 3) if most <= 1 else np.array(schedule)


def _fewest(ranges: Ranges, order: list[int], errors: Errors | None) -> TimeRanges:
    if errors is None or errors.shape != (len(order), len(order)):
        raise ValueError(f"ranges by error need errors of {len(order)} steps, [first, last]")
    alone = float(np.trace(errors))
    bound = (1 + ranges.tolerance) * alone * (1 + 1e-9)  # sums in another order round otherwise
    best, froms = _tabled(np.where(np.tri(len(order), k=-1, dtype=bool), np.inf, errors), ranges.count)
    reached = [float(row[-1]) for row in best]
    within = (parts for parts, error in enumerate(reached, 1) if error <= bound)
    count = next(within, len(reached))
    ends, last = [], len(order)
    for parts in range(count, 0, -1):
        first = int(froms[parts - 1][last - 1])
        ends.append((first, last))
        last = first
    more = 100 * (reached[count - 1] / alone - 1) if alone else 0.0
    note = f"ranges of time: {count} of {len(order)} steps, for {more:.1f}% more error than a range for each step"
    if reached[count - 1] > bound:
        note += f"; at most {ranges.count} cannot keep it under {100 * ranges.tolerance:g}%"
    return TimeRanges(tuple(tuple(sorted(order[first:last])) for first, last in reversed(ends)), (note,))


def _tabled(errors: Errors, most: int) -> tuple[list[Errors], list[npt.NDArray[np.int64]]]:
    """For 1 up to `most` ranges (at most one a step): least error of the steps 0..j, and where the last begins."""
    best, froms = [errors[0]], [np.zeros(len(errors), dtype=np.int64)]
    while len(best) < min(most, len(errors)):
        before = np.concatenate(([np.inf], best[-1][:-1]))
        totals = before[:, None] + errors
        froms.append(totals.argmin(axis=0))
        best.append(totals.min(axis=0))
    return best, froms
