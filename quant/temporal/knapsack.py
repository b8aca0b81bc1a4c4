"""One of several options for each item, at least error within a budget of bytes. Knows nothing of what the options are.

A multiple-choice knapsack, solved by the partial choices that no other one beats in both bytes and error, built up item
by item (Nemhauser and Ullmann, Management Science 1969). Exact while there are no more than MOST_POINTS of them at a
time, which equal sizes keep few: sums of bytes coincide. More are thinned evenly in bytes, the least error of each
interval staying: the result then still fits, but its error need not be the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST_POINTS = 4096

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Item(NamedTuple):
    """An option: what it takes, and the error that it leaves."""

    bytes: int
    error: float


class Packing(NamedTuple):
    """A choice for all items: what it takes and leaves in sum, and the index of each item's option."""

    bytes: int
    error: float
    picks: tuple[int, ...]


class _Front(NamedTuple):
    """Choices of which none has both fewer bytes and less error than another, in ascending order of bytes.

    Attributes:
        bytes, error: [points].
        picks: [points, items so far].
    """

    bytes: Ints
    error: Floats
    picks: Ints


def best(items: Sequence[Sequence[Item]], budget: int) -> Packing | None:
    """The choice of least total error whose bytes are at most the budget, the smaller one on a tie; None if none is."""
    front = _Front(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int64))
    for options in items:
        front = _with(front, options, budget)
    if budget < 0 or len(front.bytes) == 0:
        return None
    return Packing(int(front.bytes[-1]), float(front.error[-1]), tuple(front.picks[-1].tolist()))


def _with(front: _Front, options: Sequence[Item], budget: int) -> _Front:
    """All ways to add one of the options to one of the choices, without those that are beaten."""
    counts = (front.bytes[:, None] + np.array([item.bytes for item in options], np.int64)).ravel()
    errors = (front.error[:, None] + np.array([item.error for item in options])).ravel()
    keep = _unbeaten(counts, errors, budget)
    before, pick = np.divmod(keep, len(options))
    return _Front(counts[keep], errors[keep], np.concatenate([front.picks[before], pick[:, None]], axis=1))


def _unbeaten(counts: Ints, errors: Floats, budget: int) -> Ints:
    """Indices of the points that fit and that none beats, by bytes; thinned to MOST_POINTS."""
    order = np.lexsort((errors, counts))
    order = order[counts[order] <= budget]
    if len(order) == 0:
        return order
    before = np.concatenate([[np.inf], np.minimum.accumulate(errors[order])[:-1]])
    order = order[errors[order] < before]
    if len(order) <= MOST_POINTS:
        return order
    taken = counts[order]
    bins = (taken - taken[0]) * (MOST_POINTS - 1) // (taken[-1] - taken[0])
    last = np.append(bins[1:] != bins[:-1], True)  # of each interval: the least error
    last[0] = True  # the fewest bytes: what fits is never lost
    return np.asarray(order[last])
