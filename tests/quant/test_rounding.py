"""AdaRound: its equations by hand, its gradients against autograd, and that it finds roundings that nearest misses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quant.grid import from_integers, to_integers, weight_scales
from quant.recipe_parts import Rounding
from quant.rounding import (
    Grid,
    SoftRounding,
    beta_at,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    regularizer,
)


def test_h_by_hand() -> None:
    v = torch.tensor([0.0, math.log(3.0), -math.log(3.0), 9.0, -9.0])
    torch.testing.assert_close(rectified_sigmoid(v), torch.tensor([0.5, 0.8, 0.2, 1.0, 0.0]))
    rest = torch.linspace(0, 0.999, 50)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(rest)), rest, atol=1e-6, rtol=0)


def test_the_regularizer_by_hand() -> None:
    # |2h - 1| is 1, 0, 0.5, 0.6: 1 - its square is 0, 1, 0.75, 0.64
    h = torch.tensor([1.0, 0.5, 0.25, 0.8])
    assert float(regularizer(h, 2.0)) == pytest.approx(2.39)
    assert float(regularizer(torch.tensor([0.0, 1.0]), 20.0)) == 0.0
    assert float(regularizer(torch.tensor([0.05]), 20.0)) == pytest.approx(1 - 0.9**20)


def test_beta_falls_in_a_line_after_the_warm_up() -> None:
    rounding = Rounding(iterations=100, warmup=0.2)
    assert [beta_at(iteration, rounding) for iteration in (1, 19)] == [None, None]
    assert [beta_at(iteration, rounding) for iteration in (20, 60, 100)] == [20.0, 11.0, 2.0]
    assert beta_at(1, Rounding(iterations=1, warmup=0.0)) == 2.0


def test_learning_starts_at_the_weight_itself_and_at_nearest() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    scales = weight_scales(weight, 4, "max")
    soft = SoftRounding([Grid(weight, scales, 4)], Rounding())
    torch.testing.assert_close(soft.weights[0].detach(), weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(soft.integers()[0], to_integers(weight, scales, 4))


def test_clipped_weights_stay_at_the_end_of_the_range() -> None:
    weight = torch.tensor([[0.9, -0.9, 0.75, -0.85, 0.7, 0.33]])
    soft = SoftRounding([Grid(weight, torch.tensor([0.1]), 4)], Rounding(learning_rate=1.0))
    expected = torch.tensor([[0.7, -0.8, 0.7, -0.8, 0.7, 0.33]])
    torch.testing.assert_close(soft.weights[0].detach(), expected)
    for iteration in range(1, 5):
        (soft.weights[0] * torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])).sum().backward()  # type: ignore[no-untyped-call]
        soft.step(iteration)
    assert soft.integers()[0].tolist()[0][:5] == [7, -8, 7, -8, 7]


def literal_step(
    weight: Tensor, scale: Tensor, slope: Tensor, iteration: int, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    """V and its gradient by autograd, straight from the equations."""
    floor = (weight / scale).floor()
    v = inverse_rectified_sigmoid(weight / scale - floor).requires_grad_()
    rounded = scale * (floor + rectified_sigmoid(v)).clamp(-8, 7)
    loss = (slope * rounded).sum()
    beta = beta_at(iteration, rounding)
    if beta is not None:
        loss = loss + rounding.regularizer * regularizer(rectified_sigmoid(v), beta)
    loss.backward()  # type: ignore[no-untyped-call]
    assert v.grad is not None
    return v.detach(), v.grad


@pytest.mark.parametrize("iteration", [1, 3, 6, 10])
def test_a_step_is_adam_on_the_equations(iteration: int) -> None:
    generator = torch.Generator().manual_seed(iteration)
    weight = torch.randn(7, 11, generator=generator)
    scales, slope = weight_scales(weight, 4, "mse"), torch.randn(7, 11, generator=generator)
    rounding = Rounding(iterations=10, warmup=0.3, learning_rate=0.05)
    soft = SoftRounding([Grid(weight, scales, 4)], rounding)
    (soft.weights[0] * slope).sum().backward()  # type: ignore[no-untyped-call]
    soft.step(iteration)
    v, gradient = literal_step(weight, scales[:, None], slope, iteration, rounding)
    moved = v - 0.05 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
    floor = (weight / scales[:, None]).floor()
    expected = scales[:, None] * (floor + rectified_sigmoid(moved)).clamp(-8, 7)
    certain = gradient.abs() > 1e-5  # nearer to zero, the sign of a rounding error decides
    torch.testing.assert_close(soft.weights[0].detach()[certain], expected[certain], atol=2e-5, rtol=1e-4)


def test_weights_of_a_unit_learn_together_and_beat_nearest() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight = torch.randn(16, 24, generator=generator)
    scales = weight_scales(weight, 3, "max")
    halves = [Grid(weight[:, :10], scales, 3), Grid(weight[:, 10:], scales, 3)]
    soft = SoftRounding(halves, Rounding(iterations=300, learning_rate=0.05))

    def error(rounded: Tensor) -> Tensor:
        return (x @ (rounded - weight).t()).square().sum(1).mean()

    nearest = from_integers(to_integers(weight, scales, 3), scales)
    for iteration in range(1, 301):
        (error(torch.cat(soft.weights, dim=1)) / error(nearest)).backward()  # type: ignore[no-untyped-call]
        soft.step(iteration)
    learned = from_integers(torch.cat(soft.integers(), dim=1), scales)
    assert float(error(learned)) < 0.7 * float(error(nearest))
    assert float((learned - weight).abs().max()) <= float(scales.max()) * 1.001 + float((nearest - weight).abs().max())
    # what was soft in the end is what was rounded, nearly everywhere
    h = torch.cat([part.detach() for part in soft.weights], dim=1)
    assert float(((h - learned).abs() < 0.05 * scales[:, None]).float().mean()) > 0.9


@pytest.mark.parametrize(("weight", "scale"), [(float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))])
def test_numbers_that_cannot_be_rounded_are_refused(weight: float, scale: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity, or its scales are not positive"):
        SoftRounding([Grid(torch.tensor([[weight]]), torch.tensor([scale]), 4)], Rounding())
