"""Closed-form rounding: against direct search, on inputs that changed, and where nothing is to be won."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from quant.grid import from_integers, integer_range, to_integers, weight_scales
from quant.temporal.closed import closed_form, ridge_step, round_columns


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lost(integers: Tensor, scales: Tensor, bias: Tensor | None, inputs: Tensor, exact: Tensor) -> float:
    return float((functional.linear(inputs, from_integers(integers, scales), bias) - exact).square().sum())


def test_it_comes_close_to_the_best_of_all_roundings() -> None:
    """Every way to round five weights up or down, with the bias of least squares for each."""
    reached = direct = plain = 0.0
    for seed in range(40):
        weight, bias, inputs = normal(seed, 1, 5), normal(seed + 100, 1), normal(seed + 200, 9, 5)
        exact = functional.linear(inputs, weight, bias)
        scales = weight_scales(weight, 4, "max")
        integers, fitted = closed_form(weight, bias, scales, 4, inputs, exact)
        reached += lost(integers, scales, fitted, inputs, exact)
        plain += lost(to_integers(weight, scales, 4), scales, bias, inputs, exact)
        floor = (weight / scales).floor()
        ways = [floor + torch.tensor([ups]) for ups in itertools.product((0.0, 1.0), repeat=5)]
        missing = [exact - functional.linear(inputs, way * scales) for way in ways]
        direct += min(float((one - one.mean()).square().sum()) for one in missing)
    assert reached < 0.8 * plain
    assert reached < 1.1 * direct


def test_inputs_that_changed_are_made_up_for() -> None:
    weight, bias, before = normal(0, 6, 16), normal(1, 6), normal(2, 30, 16)
    inputs = 1.1 * before + 0.05 * normal(3, 30, 16) + 0.2
    exact = functional.linear(before, weight, bias)
    scales = weight_scales(weight, 8, "mse")
    integers, fitted = closed_form(weight, bias, scales, 8, inputs, exact)
    plain = lost(to_integers(weight, scales, 8), scales, bias, inputs, exact)
    assert lost(integers, scales, fitted, inputs, exact) < 0.06 * plain


def test_few_inputs_are_answered_almost_exactly() -> None:
    weight, bias, inputs = normal(0, 20, 64), normal(1, 20), normal(2, 10, 64)
    exact = functional.linear(inputs, weight, bias)
    scales = weight_scales(weight, 4, "mse")
    integers, fitted = closed_form(weight, bias, scales, 4, inputs, exact)
    plain = lost(to_integers(weight, scales, 4), scales, bias, inputs, exact)
    assert lost(integers, scales, fitted, inputs, exact) < 0.08 * plain
    low, high = integer_range(4)
    assert integers.dtype == torch.int8 and low <= int(integers.min()) and int(integers.max()) <= high


def test_weights_on_the_grid_stay_as_they_are() -> None:
    scales = torch.tensor([0.5, 0.25])
    integers = torch.tensor([[3, -8, 7], [1, 0, -2]], dtype=torch.int8)
    weight, bias, inputs = from_integers(integers, scales), torch.tensor([1.0, -1.0]), normal(0, 7, 3)
    found, fitted = closed_form(weight, bias, scales, 4, inputs, functional.linear(inputs, weight, bias))
    assert torch.equal(found, integers)
    assert fitted is not None and torch.allclose(fitted, bias, atol=1e-6)


def test_inputs_of_zeros_leave_rounding_to_nearest() -> None:
    weight, inputs = normal(0, 4, 6), torch.zeros(5, 6)
    scales = weight_scales(weight, 4, "max")
    integers, bias = closed_form(weight, None, scales, 4, inputs, torch.zeros(5, 4))
    assert bias is None
    assert torch.equal(integers, to_integers(weight, scales, 4))


def test_the_regression_is_the_one_of_its_equation() -> None:
    a, missing, ridge = normal(0, 7, 4).double(), normal(1, 7, 3).double(), 0.3
    whole = torch.linalg.solve(a.T @ a + ridge * torch.eye(4, dtype=torch.float64), a.T @ missing).T
    assert torch.allclose(ridge_step(a, missing, ridge), whole)


def test_columns_are_rounded_as_one_by_one() -> None:
    """GPTQ by its definition (optimal brain surgeon): solve for the columns that are left after each one."""
    w, scales = normal(0, 3, 150).double(), torch.full((3,), 0.3)
    a = normal(1, 200, 150).double()
    a = a[:, a.square().sum(0).argsort(descending=True)]  # the most active first
    hessian = a.T @ a
    integers, left = round_columns(w, scales, 4, hessian, 2)
    expected = w.clone()
    for column in range(148):
        inverse = torch.linalg.inv(hessian[column:, column:])
        rounded = (expected[:, column] / 0.3).round().clamp(*integer_range(4)) * 0.3
        change = (expected[:, column] - rounded) / inverse[0, 0]
        expected[:, column:] -= change[:, None] * inverse[0]
        assert torch.allclose(expected[:, column], rounded)
    assert float((integers * 0.3 - expected[:, :148]).abs().gt(0.01).double().mean()) < 0.02  # float32 ties
    assert torch.allclose(left.double(), expected[:, 148:], atol=0.05)
