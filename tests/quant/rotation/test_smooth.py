"""Smoothing factors: the equation, dead channels, running means over slots, and the search for an exponent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.rotation.smooth import factors, running_peaks, search_exponent, weight_peaks

PEAK = st.floats(0, torch.finfo(torch.float32).max, width=32)


def test_peaks_of_weights_are_those_of_input_channels() -> None:
    weight = torch.tensor([[1.0, -5.0, 0.0], [-2.0, 3.0, 0.0]])
    assert weight_peaks(weight).tolist() == [2.0, 5.0, 0.0]
    kernel = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    expected = [max(abs(float(v)) for v in kernel[:, channel].flatten()) for channel in range(3)]
    assert weight_peaks(kernel).tolist() == pytest.approx(expected)
    assert weight_peaks(kernel).dtype == torch.float32


def test_the_equation_by_hand() -> None:
    peaks, weights = torch.tensor([16.0, 4.0, 1.0]), torch.tensor([1.0, 4.0, 0.25])
    assert factors(peaks, weights, 0.5).tolist() == pytest.approx([4.0, 1.0, 2.0])
    assert factors(peaks, weights, 1.0).tolist() == [16.0, 4.0, 1.0]
    assert factors(peaks, weights, 0.0).tolist() == [1.0, 0.25, 4.0]
    assert factors(peaks, weights, 0.25).tolist() == pytest.approx([2.0, 0.5, 2.0**1.5])


def test_half_an_exponent_gives_inputs_and_weights_the_same_ranges() -> None:
    x, weight = torch.randn(50, 8) * torch.logspace(-2, 2, 8), torch.randn(6, 8)
    s = factors(x.abs().amax(0), weight_peaks(weight), 0.5)
    torch.testing.assert_close((x / s).abs().amax(0), weight_peaks(weight * s))
    torch.testing.assert_close((x / s) @ (weight * s).T, x @ weight.T, atol=1e-3, rtol=1e-4)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(PEAK, PEAK), min_size=1, max_size=9), exponent=st.floats(0, 1))
def test_factors_are_always_positive_and_finite_both_ways(pairs: list[tuple[float, float]], exponent: float) -> None:
    x, w = torch.tensor(pairs).T
    s = factors(x, w, exponent)
    assert s.dtype == torch.float32
    assert bool((s > 0).all())
    assert bool(s.isfinite().all())
    assert bool((1 / s).isfinite().all())
    assert bool((torch.minimum(s, 1 / s) > 1.17e-38).all()), "no subnormal numbers: some kernels take them for zero"
    assert bool((s[(x == 0) | (w == 0)] == 1).all())


@pytest.mark.parametrize(
    ("peaks", "weights", "exponent", "message"),
    [
        ([1.0], [1.0], 1.5, "exponent is 0 to 1, not 1.5"),
        ([1.0, 2.0], [1.0], 0.5, r"peaks of \[2\] inputs do not fit \[1\] of weights"),
        ([-1.0], [1.0], 0.5, "finite and not negative"),
        ([1.0], [float("nan")], 0.5, "finite and not negative"),
        ([float("inf")], [1.0], 0.5, "finite and not negative"),
    ],
)
def test_bad_peaks_and_exponents_are_refused(
    peaks: list[float], weights: list[float], exponent: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        factors(torch.tensor(peaks), torch.tensor(weights), exponent)


def test_the_running_mean_by_hand() -> None:
    slots = [torch.tensor([4.0, 0.0]), torch.zeros(2), torch.tensor([8.0, 2.0]), torch.tensor([0.0, 2.0])]
    assert running_peaks(slots, 0.5).tolist() == [3.0, 1.5]  # (4, 0), unseen, (6, 1), (3, 1.5)
    assert running_peaks(torch.stack(slots), 0.0).tolist() == [0.0, 2.0]
    assert running_peaks(slots[1:3], 0.9).tolist() == [8.0, 2.0]
    assert running_peaks([torch.zeros(2)], 0.5).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no peaks"):
        running_peaks([], 0.5)
    with pytest.raises(ValueError, match="finite and not negative"):
        running_peaks([torch.tensor([float("nan")])], 0.5)


def rounding_error(x: Tensor, weight: Tensor, s: Tensor) -> float:
    """Squared error of the output with inputs and weights on 8-bit and 4-bit grids for each whole tensor."""

    def rounded(values: Tensor, levels: int) -> Tensor:
        scale = values.abs().max() / levels
        return (values / scale).round() * scale

    return float((rounded(x / s, 127) @ rounded(weight * s, 7).T - x @ weight.T).square().sum())


def test_the_search_finds_the_best_of_its_exponents() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(count, 32, generator=generator) for count in (200, 16))
    x[:, 3] *= 60
    peaks, weights = x.abs().amax(0), weight_peaks(weight)
    exponent, error = search_exponent(peaks, weights, lambda s: rounding_error(x, weight, s))
    every = {step / 20: rounding_error(x, weight, factors(peaks, weights, step / 20)) for step in range(21)}
    assert exponent == min(every, key=lambda candidate: every[candidate])
    assert error == every[exponent] < rounding_error(x, weight, torch.ones(32))
    coarse, coarse_error = search_exponent(peaks, weights, lambda s: rounding_error(x, weight, s), grid=2)
    assert coarse in (0.0, 0.5, 1.0)
    assert coarse_error >= error


def test_no_smoothing_is_a_candidate_and_wins_ties() -> None:
    peaks = torch.tensor([4.0, 1.0])
    assert search_exponent(peaks, torch.ones(2), lambda s: float((s - 1).abs().sum()) + 2) == (None, 2.0)
    assert search_exponent(peaks, torch.ones(2), lambda s: 7.0) == (None, 7.0)


def test_an_error_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="the error with no smoothing is no number"):
        search_exponent(torch.ones(2), torch.ones(2), lambda s: float("nan"))
    with pytest.raises(ValueError, match=r"the error with exponent 0\.0 is no number"):
        search_exponent(torch.ones(2), 2 * torch.ones(2), lambda s: 1.0 if s[0] == 1 else float("nan"))
