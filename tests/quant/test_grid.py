"""Grids: zero is a point, rounding errors stay under half a step, searched weight ranges are never worse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.grid import affine_over, fake_quantize, from_integers, to_integers, weight_scales

ENDS = st.floats(-1e4, 1e4, width=32)


@given(low=ENDS, high=ENDS, bits=st.integers(2, 8))
def test_points_span_the_interval_and_hold_zero(low: float, high: float, bits: int) -> None:
    if max(high, 0.0) - min(low, 0.0) < 1e-6:
        return
    grid = affine_over(low, high, bits)
    values = torch.linspace(min(low, 0.0), max(high, 0.0), 101)
    rounded = fake_quantize(values, grid)
    assert fake_quantize(torch.zeros(1), grid).item() == 0.0
    assert float((rounded - values).abs().max()) <= grid.scale * 1.001
    assert 0 <= grid.zero_point <= grid.high


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1.0, float("nan")), (0.0, float("inf")), (0.0, 1e-44)])
def test_no_grid_without_width(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="no grid spans"):
        affine_over(low, high, 8)


def test_the_integers_are_those_of_hand_arithmetic() -> None:
    weight = torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0], [-254.0, 3.0, 1.0]])
    scales = weight_scales(weight, 8, "max")
    torch.testing.assert_close(scales, torch.tensor([1 / 127, 1.0, 2.0]))
    assert to_integers(weight, scales, 8).tolist() == [[127, -64, 0], [0, 0, 0], [-127, 2, 0]]


@pytest.mark.parametrize("shape", [(16, 64), (8, 4, 3, 3)])
@pytest.mark.parametrize("bits", [4, 8])
def test_searched_ranges_have_less_error_in_every_channel(shape: tuple[int, ...], bits: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight.view(shape[0], -1)[:, 0] = 6.0

    def errors(search: str) -> torch.Tensor:
        scales = weight_scales(weight, bits, search)
        difference = from_integers(to_integers(weight, scales, bits), scales) - weight
        return difference.flatten(1).square().sum(1)

    assert bool((errors("mse") <= errors("max")).all())
    if bits == 4 and len(shape) == 2:
        assert float(errors("mse").sum()) < 0.9 * float(errors("max").sum())


def test_bad_weights_and_searches_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        weight_scales(torch.tensor([[float("nan")]]), 8, "max")
    with pytest.raises(ValueError, match="'max' or 'mse', not by 'best'"):
        weight_scales(torch.ones(1, 1), 8, "best")
