"""One of several options for each item, at least cost within a budget of error. Knows nothing of what the options
are.

Options of all items start at the cheapest; then the step that takes away most error for what it costs more is taken,
again and again (Fox, Management Science 1966; Shoham and Gersho, IEEE TASSP 1988: bits among quantizers). Steps go
along the lower convex hull of each item's options, so that they come in falling order of gain: every choice on the
way has the least cost of all with no more error. Between two of them the search looks for single changes that still
fit; what is left to the best choice of all is less than the last step cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """What an option costs, in whatever is saved, and the error that it leaves."""

    cost: float
    error: float


class Point(NamedTuple):
    """A choice for all items: what it costs and leaves in sum, and the index of each item's option."""

    cost: float
    error: float
    picks: tuple[int, ...]


class _Step(NamedTuple):
    """From one option of an item to the next on its hull."""

    gain: float
    item: int
    pick: int


def hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull, from the cheapest to the one of least error."""
    kept: list[int] = []
    for index in sorted(range(len(options)), key=lambda index: (options[index].cost, options[index].error, index)):
        if kept and options[index].error >= options[kept[-1]].error:
            continue
        while len(kept) > 1 and _gain(options, kept[-2], kept[-1]) <= _gain(options, kept[-1], index):
            kept.pop()
        kept.append(index)
    return kept


def _gain(options: Sequence[Option], before: int, after: int) -> float:
    """Error that goes for each unit of cost."""
    dearer = options[after].cost - options[before].cost
    return (options[before].error - options[after].error) / dearer if dearer > 0 else float("inf")


def frontier(items: Sequence[Sequence[Option]]) -> list[Point]:
    """Choices of rising cost and falling error, each the cheapest of all choices with no more error.

    Raises:
        ValueError: an item has no option.
    """
    if not all(items):
        raise ValueError("every item needs at least one option")
    hulls = [hull(options) for options in items]
    steps = [
        _Step(_gain(options, before, after), item, after)
        for item, (options, own) in enumerate(zip(items, hulls, strict=True))
        for before, after in itertools.pairwise(own)
    ]
    point = _point(items, [own[0] for own in hulls])
    found = [point]
    for step in sorted(steps, key=lambda step: -step.gain):  # stable: the steps of an item stay in order
        point = _changed(items, point, step.item, step.pick)
        found.append(point)
    return found


def _changed(items: Sequence[Sequence[Option]], point: Point, item: int, pick: int) -> Point:
    """The choice with another option of one item."""
    before, after = items[item][point.picks[item]], items[item][pick]
    picks = (*point.picks[:item], pick, *point.picks[item + 1 :])
    return Point(point.cost + after.cost - before.cost, point.error + after.error - before.error, picks)


def _point(items: Sequence[Sequence[Option]], picks: Sequence[int]) -> Point:
    chosen = [options[pick] for options, pick in zip(items, picks, strict=True)]
    return Point(sum(option.cost for option in chosen), sum(option.error for option in chosen), tuple(picks))


def cheapest(items: Sequence[Sequence[Option]], budget: float, points: Sequence[Point] | None = None) -> Point | None:
    """The choice of least cost whose error is at most the budget; None if there is none. See above how near it is.

    `points` is the items' frontier, where that is known.
    """
    found = frontier(items) if points is None else points
    fits = next((point for point in found if point.error <= budget), None)
    return None if fits is None else _spent(items, fits, budget)


def _spent(items: Sequence[Sequence[Option]], point: Point, budget: float) -> Point:
    """Single changes that save most and still fit, until none does."""
    while True:
        left = budget - point.error
        changes = [
            (point_option.cost - option.cost, item, pick)
            for item, options in enumerate(items)
            for pick, option in enumerate(options)
            if option.cost < (point_option := options[point.picks[item]]).cost
            and option.error - point_option.error <= left
        ]
        if not changes:
            return point
        _, item, pick = max(changes, key=lambda change: (change[0], -change[1], -change[2]))
        better = _changed(items, point, item, pick)
        if better.error > budget or better.cost >= point.cost:  # sums round
            return point
        point = better
