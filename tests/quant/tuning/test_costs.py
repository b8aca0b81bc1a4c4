"""The search by measured costs: promises are kept at least cost, as brute force finds it, plans and tables included."""

from __future__ import annotations

import itertools

import pytest
from torch import nn

from quant.packing import packed_bytes
from quant.tuning.costs import ASIDE, LayerCosts, Measured, Objective, Offer, Search, TableCosts, pooled
from quant.tuning.formats import FLOAT, WAYS, WIDTHS, Format, way_bytes, weight_bytes


def layer(name: str, size: int, effect: float, work: float) -> LayerCosts:
    return LayerCosts(
        name=name,
        float_bytes=4 * size,
        bytes={bits: size * bits // 8 for bits in WIDTHS},
        effect={bits: effect * 4.0**-bits for bits in WIDTHS},
        way_bytes={"static": 8, "float": 0},
        way_effect={"static": effect * 4.0**-9, "float": 0.0},
        way_seconds={"static": 0.0, "float": work},
    )


MEASURED = Measured(
    layers=(layer("small", 800, 1.0, 0.001), layer("large", 8000, 0.01, 0.004)),
    tables=(TableCosts(storage="int8", bytes=100, effect=1e-6), TableCosts(storage="float32", bytes=400, effect=0.0)),
    offers=(Offer(saving=0.2, error=0.003), Offer(saving=0.4, error=0.02)),
    other_bytes=500,
    float_bytes=36_000,
    other_seconds=0.01,
    rows=50,
    ways=("static", "float"),
)


def every_cost(objective: Objective, budget: float) -> float:
    """The least cost of all choices within a budget."""
    best = float("inf")
    forms = [*(Format(bits, way) for bits in WIDTHS for way in MEASURED.ways), FLOAT]
    whole = 50 * (0.01 + 0.005)
    for one, other in itertools.product(forms, forms):
        for table, offer in itertools.product(MEASURED.tables, (None, *MEASURED.offers)):
            costs = [MEASURED.layers[0].option(one), MEASURED.layers[1].option(other)]
            error = sum(cost[2] for cost in costs) + table.effect + (offer.error**2 if offer else 0.0)
            if error > budget:
                continue
            size = 500 + sum(cost[0] for cost in costs) + table.bytes
            seconds = 50 * (1 - (offer.saving if offer else 0.0)) * (0.01 + sum(cost[1] for cost in costs))
            shares = size / 36_000, seconds / whole
            kept = shares if objective == "memory" else shares[::-1]
            best = min(best, kept[0] + ASIDE * kept[1])
    return best


@pytest.mark.parametrize("objective", ["memory", "latency"])
@pytest.mark.parametrize("budget", [1e-1, 3e-3, 4e-4, 2e-5])
def test_the_search_is_near_the_best_of_all_choices(objective: Objective, budget: float) -> None:
    search = Search(MEASURED, objective)
    found = search.best(budget)
    assert found is not None and found.error <= budget * (1 + 1e-9)
    assert search.cost(found) <= 1.15 * every_cost(objective, budget)


def test_what_costs_say_is_what_choices_are() -> None:
    found = Search(MEASURED, "memory").best(1e-3)
    assert found is not None
    costs = [one.option(found.formats[one.name]) for one in MEASURED.layers]
    table = next(one for one in MEASURED.tables if one.storage == found.storage)
    assert found.bytes == pytest.approx(500 + sum(cost[0] for cost in costs) + table.bytes)
    small, large = (found.formats[name].bits or 32 for name in ("small", "large"))
    assert small > large, "bits go where they count"


def test_latency_takes_a_plan_where_the_budget_has_room() -> None:
    search = Search(MEASURED, "latency")
    wide, narrow = search.best(1e-2), search.best(5e-6)
    assert wide is not None and wide.offer == MEASURED.offers[1]
    assert narrow is not None and narrow.offer is None


def test_a_promise_beyond_reach_has_no_choice_and_curves_fall() -> None:
    alone = MEASURED.model_copy(update={"tables": (MEASURED.tables[0],)})
    search = Search(alone, "memory")
    assert search.least_error == pytest.approx(1e-6)
    assert search.best(0.9e-6) is None
    curve = search.curve(12)
    assert all(after.bytes >= before.bytes for before, after in itertools.pairwise(curve))
    assert all(after.error <= before.error for before, after in itertools.pairwise(curve))


def test_widths_share_what_they_know() -> None:
    assert pooled({4: 8.0, 8: 0.04}, {4: 2.0, 8: 0.01}) == {4: 8.0, 8: 0.04}
    assert pooled({4: 0.0, 8: 0.04}, {4: 2.0, 8: 0.01}) == {4: 4.0, 8: 0.02}
    assert pooled({8: 0.0}, {8: 0.0}) == {8: 0.0}


def test_bytes_are_those_of_files() -> None:
    linear = nn.Linear(10, 7)
    assert weight_bytes(linear, 3, 1) == packed_bytes(70, 3) + 4 * 7
    assert weight_bytes(linear, 3, 2) == 2 * (packed_bytes(35, 3) + 4 * 7)
    assert way_bytes("static", 25, 1) == 8 and way_bytes("token", 25, 2) == 8 and way_bytes("float", 25, 1) == 0
    assert way_bytes("step", 25, 1) == 4 * (25 * 3 + 1)
    assert set(WAYS) == {"static", "step", "token", "float"}
