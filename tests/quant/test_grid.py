"""Grids: zero is a point, errors stay under half a step, searched weight ranges are never worse, four bits pack."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.grid import (
    affine_over,
    fake_quantize,
    from_integers,
    integer_range,
    pack4,
    to_integers,
    unpack4,
    weight_scales,
)

ENDS = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
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


def test_fewer_than_eight_bits_use_every_integer() -> None:
    assert [integer_range(bits) for bits in (2, 4, 7, 8)] == [(-2, 1), (-8, 7), (-64, 63), (-127, 127)]
    weight = torch.tensor([[-1.6, 0.7], [-0.8, 1.4], [0.7, 0.0]])
    scales = weight_scales(weight, 4, "max")
    torch.testing.assert_close(scales, torch.tensor([0.2, 0.2, 0.1]))
    assert to_integers(weight, scales, 4).tolist() == [[-8, 4], [-4, 7], [7, 0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_range_clips_no_weight(bits: int) -> None:
    weight = torch.randn(32, 50, generator=torch.Generator().manual_seed(bits))
    scales = weight_scales(weight, bits, "max")
    integers = to_integers(weight, scales, bits)
    assert float(((from_integers(integers, scales) - weight).abs() / scales[:, None]).max()) <= 0.5001
    low, high = integer_range(bits)
    assert bool(((integers.amin(1) == low) | (integers.amax(1) == high)).all())


def test_the_search_is_the_best_of_its_candidates() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(5)) ** 3
    found = weight_scales(weight, 4, "mse")
    for row, scale in zip(weight, found, strict=True):
        full = float(max(row.max() / 7, row.min() / -8))
        errors = {
            full * (1 - 0.01 * step): float(
                ((row / (full * (1 - 0.01 * step))).round().clamp(-8, 7) * (full * (1 - 0.01 * step)) - row)
                .square()
                .sum()
            )
            for step in range(80)
        }
        assert float(scale) == pytest.approx(min(errors, key=lambda candidate: errors[candidate]), rel=1e-5)


@settings(deadline=None)
@given(numbers=st.lists(st.integers(-8, 7), max_size=33))
def test_four_bit_integers_survive_packing(numbers: list[int]) -> None:
    integers = torch.tensor(numbers, dtype=torch.int8)
    packed = pack4(integers)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((len(numbers) + 1) // 2,)
    assert unpack4(packed, (len(numbers),)).tolist() == numbers


def test_the_first_of_two_lies_in_the_low_half() -> None:
    assert pack4(torch.tensor([[1, -1], [-8, 7]], dtype=torch.int8)).tolist() == [0xF1, 0x78]
    assert unpack4(torch.tensor([0xF1, 0x78], dtype=torch.uint8), (2, 2)).tolist() == [[1, -1], [-8, 7]]


def test_what_does_not_fit_is_not_packed() -> None:
    with pytest.raises(ValueError, match=r"four bits hold -8\.\.7; the integers span 0\.\.8"):
        pack4(torch.tensor([0, 8], dtype=torch.int8))
    with pytest.raises(ValueError, match=r"4 integers of four bits take uint8 \[2\], not torch.uint8 \[3\]"):
        unpack4(torch.zeros(3, dtype=torch.uint8), (2, 2))
