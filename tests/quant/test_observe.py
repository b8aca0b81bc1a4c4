"""The streaming histogram: independent of order and batching, exact in its counts; ranges that fit what was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quant.errors import CalibrationError
from quant.grid import affine_over, fake_quantize
from quant.observe import BINS, Histogram, Search, best_grid, rounding_error

NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


def histogram_of(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@example(first=[0.0], second=[-262145.0, -1.3e-43])
@settings(deadline=None)
@given(first=NUMBERS, second=NUMBERS)
def test_order_and_batching_do_not_matter(first: list[float], second: list[float]) -> None:
    one, two = torch.tensor(first), torch.tensor(second)
    together = histogram_of(torch.cat([one, two]))
    for other in (histogram_of(one, two), histogram_of(two, one)):
        assert (other.low, other.high, other.exponent, other.start) == (
            together.low, together.high, together.exponent, together.start,
        )  # fmt: skip
        assert np.array_equal(other.counts, together.counts)
    assert together.total == len(first) + len(second)
    assert len(together.counts) <= BINS


def test_bins_hold_what_lies_in_them() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(3))
    histogram = histogram_of(values[:100], values[100:])
    width = 2.0**histogram.exponent
    edges = (histogram.start + np.arange(len(histogram.counts) + 1)) * width
    assert np.array_equal(histogram.counts, np.histogram(values.double().numpy(), bins=edges)[0])
    assert histogram.power == pytest.approx(float(values.square().mean()), rel=1e-3)


def test_predicted_rounding_error_is_the_true_one() -> None:
    values = torch.randn(20000, generator=torch.Generator().manual_seed(3))
    grid = affine_over(-3.0, 3.5, 6)
    true = float((fake_quantize(values, grid) - values).square().mean())
    assert rounding_error(histogram_of(values), grid) == pytest.approx(true, rel=0.02)


def test_least_error_clips_rare_outliers_and_minmax_does_not() -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    values[0] = 20.0
    histogram = histogram_of(values)
    errors = {
        search: rounding_error(histogram, best_grid(histogram, 8, search)) for search in ("minmax", "mse", "percentile")
    }
    assert errors["mse"] < 0.6 * errors["minmax"]
    assert errors["mse"] <= errors["percentile"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("search", ["minmax", "mse", "percentile"])
def test_one_sided_inputs_use_all_integers_on_their_side(search: Search, sign: float) -> None:
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) * sign
    grid = best_grid(histogram_of(values), 8, search)
    assert grid.zero_point == (0 if sign > 0 else 255)
    assert grid.scale == pytest.approx(1 / 255, rel=0.02)


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        histogram_of(torch.tensor([1.0, float("nan")]))
    with pytest.raises(CalibrationError, match="no range to quantize"):
        best_grid(histogram_of(torch.zeros(3)), 8, "mse")
    with pytest.raises(CalibrationError, match="no range to quantize"):
        best_grid(Histogram(), 8, "minmax")


@settings(deadline=None)
@given(first=NUMBERS, second=NUMBERS)
def test_merging_is_counting_together(first: list[float], second: list[float]) -> None:
    one, two = torch.tensor(first), torch.tensor(second)
    merged, together = histogram_of(one), histogram_of(one, two)
    merged.merge(histogram_of(two))
    merged.merge(Histogram())
    assert (merged.low, merged.high, merged.exponent, merged.start) == (
        together.low, together.high, together.exponent, together.start,
    )  # fmt: skip
    assert np.array_equal(merged.counts, together.counts)


@settings(deadline=None)
@given(first=NUMBERS, second=NUMBERS, third=NUMBERS)
def test_histograms_of_fewer_bins_merge_both_ways(first: list[float], second: list[float], third: list[float]) -> None:
    fine, coarse = histogram_of(torch.tensor(first)), Histogram(bins=16)
    coarse.add(torch.tensor(second))
    coarse.merge(fine)
    assert len(coarse.counts) <= 16
    fine.merge(coarse)
    fine.add(torch.tensor(third))
    assert fine.total == 2 * len(first) + len(second) + len(third)
    assert fine.low == min(first + second + third)
    inside = fine.centres[fine.counts > 0]
    assert inside.min() >= fine.low - 2.0**fine.exponent
    assert inside.max() <= fine.high + 2.0**fine.exponent
