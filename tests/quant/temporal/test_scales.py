"""Grids that follow time: against direct searches, and in the cells where little or nothing was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.clock import BRANCHES, COND, UNCOND, UNKNOWN
from quant.errors import CalibrationError
from quant.grid import affine_over
from quant.observe import Histogram, Search, best_grid, rounding_error
from quant.recipe import Activations
from quant.temporal.scales import finite_set_grids, time_grids, union

EACH = Activations(steps="each", branches="each")
PER_STEP = Activations(steps="each")
PER_BRANCH = Activations(branches="each")


def numbers(seed: int, count: int = 400) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def histogram_of(values: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def error_of(histogram: Histogram, scale: float, zero_point: int, bits: int, power: float) -> float:
    """Mean of |x - Q(x)|**power by a loop over bins."""
    sum_ = 0.0
    for centre, count in zip(histogram.centres.tolist(), histogram.counts.tolist(), strict=True):
        integer = min(2**bits - 1, max(0, round(centre / scale) + zero_point))
        sum_ += count * abs((integer - zero_point) * scale - centre) ** power
    return sum_ / histogram.total


def published_grid(x: list[float], bits: int, power: float) -> tuple[float, int]:
    """TFMQ-DM's search for one step, as written there: 80 ratios of both ends."""
    low, top, high = min(0.0, *x), max(0.0, *x), 2**bits - 1
    best, least = (0.0, 0), math.inf
    for step in range(80):
        new_low, new_top = low * (1 - 0.01 * step), top * (1 - 0.01 * step)
        scale = (new_top - new_low) / high
        zero_point = round(-new_low / scale)
        error = 0.0
        for value in x:
            integer = min(high, max(0, round(value / scale) + zero_point))
            error += abs((integer - zero_point) * scale - value) ** power
        if error < least:
            best, least = (scale, zero_point), error
    return best


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("power", [2.0, 2.4])
def test_finite_set_grids_are_those_of_the_published_search(bits: int, power: float) -> None:
    x = torch.stack([numbers(slot, 60) * (slot + 1) for slot in range(5)])
    x = torch.cat([torch.nn.functional.silu(x), x[:, :3] * 3], dim=1)
    scales, zero_points = finite_set_grids(x, bits, power)
    assert scales.dtype == torch.float32 and zero_points.dtype == torch.int32
    for slot, row in enumerate(x.double().tolist()):
        scale, zero_point = published_grid(row, bits, power)
        assert int(zero_points[slot]) == zero_point
        assert float(scales[slot]) == pytest.approx(scale, rel=1e-5)


def test_a_slot_of_zeros_takes_the_range_of_all_slots() -> None:
    x = torch.stack([numbers(0), torch.zeros(400), numbers(1) * 5])
    scales, zero_points = finite_set_grids(x, 8)
    whole = affine_over(float(x.min()), float(x.max()), 8)
    assert float(scales[1]) == pytest.approx(whole.scale)
    assert int(zero_points[1]) == whole.zero_point


def test_finite_sets_that_cannot_be_rounded_are_refused() -> None:
    with pytest.raises(CalibrationError, match="nothing but zeros"):
        finite_set_grids(torch.zeros(3, 4), 8)
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        finite_set_grids(torch.tensor([[1.0, math.nan]]), 8)


def cells(seed: int, kind: str, slots: int = 3) -> dict[tuple[int, int], Histogram]:
    found = {}
    for slot in range(slots):
        for branch in (UNCOND, COND):
            values = numbers(100 * seed + 10 * slot + branch, 120) * (1.0 + slot) * (1.0 + 0.5 * branch)
            values = torch.nn.functional.silu(values) if kind == "silu" else values + (kind == "shifted")
            found[slot, branch] = histogram_of(values)
    return found


@pytest.mark.parametrize("kind", ["normal", "shifted", "silu"])
@pytest.mark.parametrize(("bits", "power"), [(3, 2.0), (4, 2.0), (4, 2.4)])
def test_time_grids_come_close_to_a_direct_search(kind: str, bits: int, power: float) -> None:
    each = cells(bits, kind, slots=2)
    chosen = Activations(bits=bits, power=power, steps="each", branches="each")
    scales, zero_point = time_grids(each, union(each.values()), 2, chosen)
    reached = sum(error_of(seen, float(scales[cell]), zero_point, bits, power) for cell, seen in each.items())
    widest = max(max(-seen.low, seen.high) for seen in each.values())

    def least(seen: Histogram, other: int) -> float:
        candidates = np.linspace(0.02, 1.0, 40) * widest / (2**bits // 2)
        return min(error_of(seen, float(scale), other, bits, power) for scale in candidates)

    direct = min(sum(least(seen, other) for seen in each.values()) for other in range(2**bits))
    assert reached <= 1.03 * direct


def test_a_scale_for_each_step_beats_one_for_all() -> None:
    each = cells(1, "shifted")
    total = union(each.values())

    def error(activations: Activations) -> float:
        scales, zero_point = time_grids(each, total, 3, activations)
        return sum(error_of(seen, float(scales[cell]), zero_point, 8, 2.0) for cell, seen in each.items())

    both, steps, branches, one = (error(way) for way in (EACH, PER_STEP, PER_BRANCH, Activations()))
    assert both < steps < branches < one


def test_one_cell_gets_about_the_grid_of_a_layer_without_time() -> None:
    seen = histogram_of(torch.nn.functional.silu(numbers(3, 5000)))
    ways: tuple[Search, ...] = ("minmax", "percentile", "mse")
    for way in ways:
        scales, zero_point = time_grids({(0, UNKNOWN): seen}, seen, 1, Activations(range=way, steps="each"))
        plain = best_grid(seen, 8, way)
        reached = error_of(seen, float(scales[0, 0]), zero_point, 8, 2.0)
        assert reached == pytest.approx(rounding_error(seen, plain), rel=0.1)


def test_minmax_leaves_no_number_further_than_half_a_step() -> None:
    each = cells(2, "shifted")
    scales, zero_point = time_grids(each, union(each.values()), 3, EACH.model_copy(update={"range": "minmax"}))
    for cell, seen in each.items():
        scale = float(scales[cell]) * (1 + 1e-6)
        assert -(zero_point + 0.5) * scale <= seen.low and seen.high <= (255 - zero_point + 0.5) * scale


def test_who_shares_a_scale() -> None:
    each = cells(0, "normal")
    total = union(each.values())
    both, _ = time_grids(each, total, 3, EACH)
    assert len(set(both[:, :2].flatten().tolist())) == 6
    steps, _ = time_grids(each, total, 3, PER_STEP)
    assert torch.equal(steps, steps[:, :1].expand(3, BRANCHES)) and len(set(steps[:, 0].tolist())) == 3
    branches, _ = time_grids(each, total, 3, PER_BRANCH)
    assert torch.equal(branches, branches[:1].expand(3, BRANCHES)) and branches[0, UNCOND] != branches[0, COND]
    one, _ = time_grids(each, total, 3, Activations())
    assert len(set(one.flatten().tolist())) == 1


def test_steps_of_one_range_share_what_was_seen_at_all_of_them() -> None:
    each, ways = cells(0, "shifted", slots=4), Activations(steps="ranges", branches="each")
    total, ranges = union(each.values()), ((3,), (), (0, 2, 1))
    scales, zero_point = time_grids(each, total, 4, ways, ranges)
    assert torch.equal(scales[0], scales[1]) and torch.equal(scales[0], scales[2])
    assert len(set(scales[[0, 3], :2].flatten().tolist())) == 4
    merged = {(0, branch): union(each[slot, branch] for slot in range(3)) for branch in (UNCOND, COND)}
    merged |= {(1, branch): each[3, branch] for branch in (UNCOND, COND)}
    expected, other = time_grids(merged, total, 2, EACH)
    assert torch.equal(scales, expected[[0, 0, 0, 1]]) and zero_point == other


def test_ranges_of_one_step_are_steps_and_one_range_is_all_times() -> None:
    each, ways = cells(1, "silu"), Activations(steps="ranges", branches="each")
    total = union(each.values())
    for ranges, alike in ((((0,), (1,), (2,)), EACH), (((2, 0, 1),), PER_BRANCH)):
        scales, zero_point = time_grids(each, total, 3, ways, ranges)
        expected, other = time_grids(each, total, 3, alike)
        assert torch.equal(scales, expected) and zero_point == other


@pytest.mark.parametrize("ranges", [(), ((0, 1),), ((0, 1), (1, 2)), ((0, 1, 2, 3),)])
def test_ranges_must_have_each_slot_once(ranges: tuple[tuple[int, ...], ...]) -> None:
    each = cells(0, "normal")
    with pytest.raises(ValueError, match="each of 3 slots once"):
        time_grids(each, union(each.values()), 3, Activations(steps="ranges"), ranges)


def test_unknown_and_missing_branches_take_the_union_of_their_slot() -> None:
    each = cells(0, "normal")
    del each[1, COND], each[2, UNCOND], each[2, COND]
    total = union(each.values())
    scales, zero_point = time_grids(each, total, 3, EACH)
    assert len(set(scales[1].tolist())) == 1  # all that was seen there is one branch
    together = union([each[0, UNCOND], each[0, COND]])
    errors = {column: error_of(together, float(scales[0, column]), zero_point, 8, 2.0) for column in range(BRANCHES)}
    assert errors[UNKNOWN] <= errors[COND] and errors[UNKNOWN] < errors[UNCOND]
    whole = error_of(total, float(scales[2, UNKNOWN]), zero_point, 8, 2.0)  # nothing was seen there
    assert whole < error_of(total, float(scales[0, UNKNOWN]), zero_point, 8, 2.0)


def test_a_cell_of_zeros_takes_the_scale_of_the_whole_layer() -> None:
    each = {**cells(0, "normal"), (1, COND): histogram_of(torch.zeros(50))}
    total = union(each.values())
    scales, _ = time_grids(each, total, 4, EACH)
    assert scales[1, COND] == scales[3, UNKNOWN]  # slot 3 was never seen
    assert bool(torch.isfinite(scales).all()) and bool((scales > 0).all())


def test_one_sided_inputs_use_all_integers() -> None:
    for sign, expected in ((1.0, 0), (-1.0, 255)):
        each = {(slot, UNKNOWN): histogram_of(numbers(slot).abs() * sign) for slot in range(2)}
        assert time_grids(each, union(each.values()), 2, PER_STEP)[1] == expected


def test_what_cannot_be_rounded_is_refused() -> None:
    zeros = {(0, COND): histogram_of(torch.zeros(4))}
    with pytest.raises(CalibrationError, match="nothing but zeros"):
        time_grids(zeros, union(zeros.values()), 1, EACH)
    with pytest.raises(ValueError, match="slot below 1"):
        time_grids(cells(0, "normal"), histogram_of(numbers(0)), 1, EACH)
    with pytest.raises(CalibrationError, match="stay float"):
        time_grids({}, histogram_of(numbers(0)), 1, Activations(bits=32))


def test_a_union_counts_as_if_all_had_come_to_one() -> None:
    parts = [numbers(seed, 300) * 10.0**seed for seed in range(4)]
    whole, together = histogram_of(torch.cat(parts)), union(histogram_of(part) for part in parts)
    assert (together.low, together.high, together.start) == (whole.low, whole.high, whole.start)
    assert together.exponent == whole.exponent and np.array_equal(together.counts, whole.counts)
