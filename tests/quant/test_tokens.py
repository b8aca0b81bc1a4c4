"""Tokens rounded by their own numbers: against loops over them, with zeros, and alone as in company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.tokens import TokenSpread, round_alike, round_between, round_tokens


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.01, 1.0, 30.0])[:, None]


@pytest.mark.parametrize(("bits", "zero_point"), [(8, 128), (8, 9), (8, 0), (8, 255), (4, 8), (4, 2), (2, 1)])
def test_integers_with_one_zero_point(bits: int, zero_point: int) -> None:
    x, high = some(2, 3, 9), 2**bits - 1
    integers, scale = round_tokens(x, zero_point, high)
    assert scale.shape == (2, 3, 1)
    for row in range(2):
        for token in range(3):
            values = x[row, token].double().tolist()
            below = -min(values) / zero_point if zero_point else 0.0
            above = max(values) / (high - zero_point) if zero_point < high else 0.0
            step = max(below, above, 1e-30)
            assert float(scale[row, token]) == pytest.approx(step)
            expected = [min(high - zero_point, max(-zero_point, round(value / step))) for value in values]
            assert integers[row, token].tolist() == pytest.approx(expected)


def test_the_zero_point_of_least_error() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator) * (0.5 + torch.rand(200, 1, generator=generator) * 4)
    one_sided, spread, both = torch.nn.functional.silu(x), TokenSpread(), TokenSpread()
    for rows in torch.split(one_sided, 50):
        spread.add(rows)
    both.add(x)

    def error(values: Tensor, zero_point: int, bits: int) -> float:
        integers, scale = round_tokens(values, zero_point, 2**bits - 1)
        return float((integers * scale - values).square().mean())

    for bits in (8, 4):
        found = spread.zero_point(bits)
        least = min(error(one_sided, other, bits) for other in range(2**bits))
        assert error(one_sided, found, bits) <= 1.1 * least
        assert error(one_sided, found, bits) < 0.5 * error(one_sided, 2 ** (bits - 1), bits)
        if bits == 8:  # steps of 4 bits are too coarse for errors to be even within them
            assert spread.error(bits, found) == pytest.approx(error(one_sided, found, bits), rel=0.1)
    assert 118 <= both.zero_point(8) <= 138
    assert error(one_sided, spread.zero_point(8), 8) == pytest.approx(
        float((round_alike(one_sided, 8) - one_sided).square().mean())
    )


def test_zero_points_of_tokens_cost_the_least() -> None:
    x, spread = some(40, 3, 60) + 0.3, TokenSpread()
    spread.add(x)
    own = float((round_between(x, 255) - x).square().mean())
    assert spread.error(8, None) == pytest.approx(own, rel=0.1)
    assert own < spread.error(8, spread.zero_point(8)) <= spread.error(8, 128)


def test_what_never_is_negative_gets_the_whole_grid() -> None:
    spread = TokenSpread()
    assert spread.zero_point(8) == 128  # nothing was seen
    spread.add(torch.zeros(2, 3))
    assert spread.zero_point(4) == 8
    spread.add(torch.tensor([[0.0, 3.0, 1.0]]))
    assert spread.zero_point(8) == 0
    spread.add(torch.tensor([[-5.0, 0.0]]))
    assert 128 < spread.zero_point(8) < 200


@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_between_the_least_and_the_greatest(bits: int) -> None:
    x, high = some(2, 3, 9) + 0.5, 2**bits - 1
    x[0, 1] = x[0, 1].abs() + 2.0  # zero is outside of its numbers
    found = round_between(x, high)
    for row in range(2):
        for token in range(3):
            values = x[row, token].double().tolist()
            low, top = min(0.0, *values), max(0.0, *values)
            step = (top - low) / high
            zero = round(-low / step)
            expected = [(min(high, max(0, round(value / step) + zero)) - zero) * step for value in values]
            assert found[row, token].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_zeros_stay_zeros() -> None:
    x = torch.zeros(2, 5)
    x[1, 0] = 1e-35  # nothing float32 could be divided by
    integers, scale = round_tokens(x, 100, 255)
    assert torch.equal(integers, torch.zeros(2, 5)) and bool((scale > 0).all())
    assert torch.equal(round_between(x, 255), torch.zeros(2, 5))


def test_a_token_is_its_own_whatever_stands_beside_it() -> None:
    x = some(4, 3, 9)
    alone = x[2:3, 1:2]
    assert torch.equal(round_tokens(x, 100, 255)[0][2:3, 1:2], round_tokens(alone, 100, 255)[0])
    assert torch.equal(round_between(x, 255)[2:3, 1:2], round_between(alone, 255))


def test_a_picture_may_be_one_token() -> None:
    x = (
        torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 9.0])[:, None, None, None]
    )
    integers, scale = round_tokens(x, 127, 255, (-3, -2, -1))
    assert scale.shape == (2, 1, 1, 1)
    steps = torch.maximum(x.flatten(1).amax(1) / 128, -x.flatten(1).amin(1) / 127)
    torch.testing.assert_close(scale.flatten(), steps)
    assert float(integers.min()) == -127.0 or float(integers.max()) == 128.0
