"""The frontier has exactly what nothing beats, by brute force; times of several runs are made to compare."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.pareto import Place, frontier, marked, places
from jobs.profile import FLOAT, Axis, Fidelity, ProfileCard


def card(name: str, psnr: float | None, size: int, seconds: float = 0.1, beside: float | None = 0.2) -> ProfileCard:
    measured = Fidelity(prompts=4, psnr_db=psnr, ssim=0.9, seconds=seconds, float_seconds=beside) if psnr else None
    return ProfileCard(
        name=name,
        model="m",
        backend="openvino",
        recipe=name,
        weight_bits=8,
        activation_bits=8,
        weights_bytes=size,
        float_weights_bytes=400,
        fidelity=measured,
    )


def beats(one: Place, other: Place, axis: Axis) -> bool:
    costs = one.cost(axis), other.cost(axis)
    if costs[0] is None or costs[1] is None:
        return False
    no_worse = one.psnr_db >= other.psnr_db and costs[0] <= costs[1]
    return no_worse and (one.psnr_db, costs[0]) != (other.psnr_db, costs[1])


@given(st.lists(st.tuples(st.integers(20, 26), st.integers(1, 6), st.none() | st.integers(1, 6)), max_size=12))
def test_nothing_on_the_frontier_is_beaten_and_all_else_is(rows: list[tuple[int, int, int | None]]) -> None:
    found = [Place(str(i), psnr, None if s is None else float(s), size) for i, (psnr, size, s) in enumerate(rows)]
    axes: tuple[Axis, ...] = ("seconds", "bytes")
    for axis in axes:
        expected = {
            one.name for one in found if one.cost(axis) is not None and not any(beats(o, one, axis) for o in found)
        }
        best = frontier(found, axis)
        assert {one.name for one in best} == expected
        assert [one.cost(axis) or 0 for one in best] == sorted(one.cost(axis) or 0 for one in best)


def test_float_is_exact_and_what_was_not_measured_has_no_mark() -> None:
    cards = [card(FLOAT, None, 400), card("a", 40.0, 100), card("b", 39.0, 120, 0.05), card("new", None, 1)]
    told = {one.name: one.pareto for one in marked(cards)}
    assert told == {FLOAT: ("seconds", "bytes"), "a": ("seconds", "bytes"), "b": ("seconds",), "new": None}
    assert [one.psnr_db for one in places(cards)] == [math.inf, 40.0, 39.0]


def test_seconds_are_those_beside_float_of_the_same_run() -> None:
    cards = [card(FLOAT, None, 400), card("quiet", 40.0, 100, 0.1, 0.2), card("busy", 40.0, 100, 0.3, 0.8)]
    cards.append(card("alone", 40.0, 100, 0.01, None))
    found = {one.name: one.seconds for one in places(cards)}
    assert found["float"] == 0.5 and found["quiet"] == 0.25 and found["alone"] is None
    assert found["busy"] == pytest.approx(0.1875)
    assert "alone" not in {one.name for one in frontier(places(cards), "seconds")}
