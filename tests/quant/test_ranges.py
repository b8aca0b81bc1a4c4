"""Ranges of time: as published, on any scale of timesteps, and by error against trying every division."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quant.errors import CalibrationError
from quant.ranges import Errors, ranges_of
from quant.recipe_parts import Ranges

TRDQ = [(50 * part, 50 * part + 49) for part in range(19)] + [(950, 1000)]
"""`timerange` of TR-DQ's configuration for OpenSora."""
VIDITQ = ((0, 500), (501, 1000))


def inside(bounds: tuple[int, int], time: float) -> bool:
    return bounds[0] <= time <= bounds[1]


@pytest.mark.parametrize(
    ("ranges", "published"),
    [(Ranges(count=20), TRDQ), (Ranges(method="given", bounds=VIDITQ), VIDITQ)],
)
def test_ranges_are_the_published_ones(ranges: Ranges, published: list[tuple[int, int]]) -> None:
    schedule = [float(time) for time in range(1000, -1, -1)]
    found = ranges_of(ranges, schedule).slots
    for bounds, slots in zip(published, found, strict=True):
        assert [schedule[slot] for slot in slots] == [time for time in schedule if inside(bounds, time)]


def test_given_ranges_may_come_in_any_order_and_hold_what_lies_between_integers() -> None:
    ranges = Ranges(method="given", bounds=((501, 1000), (0, 500)))
    assert ranges_of(ranges, [500.7, 501.0, 0.2, 1000.0]).slots == ((0, 2), (1, 3))


def test_models_that_take_times_as_parts_of_one_have_the_same_ranges() -> None:
    times = [1000.0, 999.0, 950.0, 949.0, 50.0, 49.0, 0.0]
    parts = [float(np.float32(time / 1000)) for time in times]
    assert ranges_of(Ranges(), parts).slots == ranges_of(Ranges(), times).slots


def test_ranges_without_steps_are_counted_and_have_no_place() -> None:
    found = ranges_of(Ranges(count=4), [900.0, 100.0, 990.0])
    assert found.slots == ((1,), (), (), (0, 2))
    assert found.used == ((1,), (0, 2))
    assert found.places().tolist() == [1, 0, 1]
    assert found.notes == ("ranges of time: 4, of which 2 hold none of the calibrated steps",)


@pytest.mark.parametrize("schedule", [[-0.5, 1.2], [10.0, 1500.0]])
def test_times_on_another_scale_are_refused_unless_divided_by_error(schedule: list[float]) -> None:
    with pytest.raises(CalibrationError, match=r"do not lie in 0 to 1000.*method \"dp\""):
        ranges_of(Ranges(), schedule)
    assert ranges_of(Ranges(method="dp"), schedule, np.eye(2)).slots == ((0, 1),)


def test_without_timesteps_there_is_nothing_to_divide() -> None:
    with pytest.raises(CalibrationError, match="no argument is a timestep"):
        ranges_of(Ranges(), ())
    with pytest.raises(ValueError, match="errors of 2 steps"):
        ranges_of(Ranges(method="dp"), [1.0, 2.0], np.ones((3, 3)))


def divisions(count: int) -> list[list[tuple[int, int]]]:
    """Every way to divide 0 .. count - 1 into ranges of neighbours, as (first, last)."""
    found = []
    for cuts in itertools.product((False, True), repeat=count - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), count]
        found.append([(first, after - 1) for first, after in itertools.pairwise(edges)])
    return found


def some_errors(seed: int, count: int) -> Errors:
    """Errors that grow with what is shared, as real ones do."""
    rng = np.random.default_rng(seed)
    errors = np.zeros((count, count))
    for first in range(count):
        for last in range(first, count):
            errors[first, last] = rng.uniform(0.5, 1.0) * (1 + 0.2 * (last - first)) * (last - first + 1)
    return errors


@pytest.mark.parametrize("seed", range(12))
def test_ranges_by_error_are_the_fewest_of_least_error(seed: int) -> None:
    errors, tolerance = some_errors(seed, 8), [0.0, 0.1, 0.3, 1.0][seed % 4]
    schedule = [float(time) for time in np.random.default_rng(seed).permutation(8)]
    found = ranges_of(Ranges(method="dp", tolerance=tolerance), schedule, errors)

    def cost(ways: list[tuple[int, int]]) -> float:
        return sum(float(errors[way]) for way in ways)

    bound = (1 + tolerance) * float(np.trace(errors)) + 1e-9
    fewest = min(len(ways) for ways in divisions(8) if cost(ways) <= bound)
    best = min((ways for ways in divisions(8) if len(ways) == fewest), key=cost)
    order = sorted(range(8), key=lambda slot: schedule[slot])
    assert found.slots == tuple(tuple(sorted(order[first : last + 1])) for first, last in best)
    assert f"{fewest} of 8 steps" in found.notes[0]


def test_a_bound_that_too_few_ranges_cannot_keep_is_told() -> None:
    errors = some_errors(0, 8)
    found = ranges_of(Ranges(method="dp", count=2, tolerance=0.0), [float(time) for time in range(8)], errors)
    least = min(float(errors[0, last] + errors[last + 1, 7]) for last in range(7))
    assert len(found.slots) == 2
    assert f"for {100 * (least / np.trace(errors) - 1):.1f}% more error" in found.notes[0]
    assert "at most 2 cannot keep it under 0%" in found.notes[0]


def test_steps_that_cost_nothing_share_one_range() -> None:
    assert ranges_of(Ranges(method="dp"), [3.0, 2.0, 1.0], np.zeros((3, 3))).slots == ((0, 1, 2),)
