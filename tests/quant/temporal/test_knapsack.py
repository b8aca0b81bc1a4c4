"""The budgeted choice: against all choices one by one, and still good where it must thin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.temporal import knapsack
from quant.temporal.knapsack import Item, best

ITEMS = st.lists(
    st.lists(st.builds(Item, st.integers(0, 60), st.integers(0, 100).map(float)), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
)


@given(items=ITEMS, budget=st.integers(-5, 250))
def test_no_choice_that_fits_has_less_error(items: list[list[Item]], budget: int) -> None:
    found = best(items, budget)
    fitting = [
        (sum(item.error for item in choice), sum(item.bytes for item in choice))
        for choice in itertools.product(*items)
        if sum(item.bytes for item in choice) <= budget
    ]
    assert (found is None) == (not fitting)
    if found is not None:
        assert (found.error, found.bytes) == min(fitting)
        chosen = [options[pick] for options, pick in zip(items, found.picks, strict=True)]
        assert (sum(item.error for item in chosen), sum(item.bytes for item in chosen)) == (found.error, found.bytes)


def instance(seed: int, count: int) -> list[list[Item]]:
    """Tables of float32, bfloat16, int8, int4 and a layer, of odd sizes, so that few sums coincide."""
    draw = np.random.default_rng(seed)
    sizes, spread = draw.integers(1000, 9000, count), draw.uniform(0.5, 2.0, count)
    return [
        [
            Item(int(size) * 4, 0.0),
            Item(int(size) * 2, 1e-5 * scale),
            Item(int(size), 1e-4 * scale),
            Item(int(size) // 2, 3e-2 * scale),
            Item(int(size * draw.uniform(0.2, 3)), float(draw.uniform(1e-5, 1e-1))),
        ]
        for size, scale in zip(sizes, spread, strict=True)
    ]


@pytest.mark.parametrize("share", [0.15, 0.3, 0.6])
def test_thinning_costs_next_to_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        items = instance(seed, 30)
        budget = int(share * sum(options[0].bytes for options in items))
        monkeypatch.setattr(knapsack, "MOST_POINTS", 200_000)
        exact = best(items, budget)
        monkeypatch.setattr(knapsack, "MOST_POINTS", 4096)
        thinned = best(items, budget)
        assert exact is not None and thinned is not None and thinned.bytes <= budget
        assert thinned.error <= 1.01 * exact.error


def test_thinning_never_loses_the_smallest_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_POINTS", 8)
    items = instance(0, 20)
    least = sum(min(item.bytes for item in options) for options in items)
    found = best(items, least)
    assert found is not None and found.bytes == least
    assert best(items, least - 1) is None
