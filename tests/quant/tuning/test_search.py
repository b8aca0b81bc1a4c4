"""The search against all choices there are: on the frontier nothing is cheaper, between its points little is."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.tuning.search import Option, Point, cheapest, frontier, hull

options = st.builds(Option, st.integers(0, 30).map(float), st.integers(0, 30).map(float))
problems = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=4)


def all_choices(items: list[list[Option]]) -> list[Point]:
    found = []
    for picks in itertools.product(*(range(len(own)) for own in items)):
        chosen = [own[pick] for own, pick in zip(items, picks, strict=True)]
        found.append(Point(sum(o.cost for o in chosen), sum(o.error for o in chosen), picks))
    return found


@settings(deadline=None)
@given(problems)
def test_no_choice_beats_the_frontier(items: list[list[Option]]) -> None:
    every = all_choices(items)
    points = frontier(items)
    for point in points:
        assert point in every
        assert point.cost == min(other.cost for other in every if other.error <= point.error)
    for before, after in itertools.pairwise(points):
        assert after.cost >= before.cost and after.error < before.error
    assert points[0].cost == min(other.cost for other in every)
    assert points[-1].error == min(other.error for other in every)


@settings(deadline=None)
@given(problems, st.integers(0, 120))
def test_the_cheapest_fits_and_is_near_the_best(items: list[list[Option]], budget: int) -> None:
    every = [point for point in all_choices(items) if point.error <= budget]
    found = cheapest(items, budget)
    if not every:
        assert found is None
        return
    assert found in every
    best, points = min(point.cost for point in every), frontier(items)
    after = next(place for place, point in enumerate(points) if point.error <= budget)
    step = points[after].cost - points[after - 1].cost if after else 0.0
    assert found.cost <= points[after].cost
    assert found.cost - best <= step, "less than the last step cost"


def test_many_small_layers_come_close_to_the_relaxed_optimum() -> None:
    items = [[Option(bits * (1 + i % 7), (1 + i % 5) * 4.0**-bits) for bits in range(2, 9)] for i in range(200)]
    budget = 0.05
    found = cheapest(items, budget)
    assert found is not None and 0.97 * budget < found.error <= budget
    cheaper = max((point for point in frontier(items) if point.error > budget), key=lambda point: point.cost)
    assert found.cost - cheaper.cost < 0.01 * found.cost


def test_what_is_beaten_is_not_on_the_hull() -> None:
    own = [Option(4, 1), Option(1, 9), Option(2, 8.9), Option(2, 4), Option(5, 2), Option(4, 1)]
    assert hull(own) == [1, 3, 0]
    assert math.isclose(frontier([own])[-1].error, 1)


def test_an_item_without_options_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one option"):
        frontier([[Option(1, 1)], []])
