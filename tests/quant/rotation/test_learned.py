"""Learned rotations: orthogonal, deterministic, better than their start on new inputs, or the start itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.grid import affine_over, fake_quantize, from_integers, to_integers, weight_scales
from quant.rotation.hadamard import hadamard, rotate
from quant.rotation.learned import Grain, Rounded, learned_block


def layer(rows: int, width: int, out: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [rows, width] of uneven channels, and a weight [out, width]."""
    generator = torch.Generator().manual_seed(seed)
    reach = torch.randn(width, generator=generator).mul(0.5).exp()
    x = torch.randn(rows, width, generator=generator) * reach
    return x, torch.randn(out, width, generator=generator) / width**0.5


def relative(rounded: Rounded, x: Tensor, weight: Tensor, block: Tensor) -> float:
    return float((rounded.error(x, weight, block) / (x @ weight.T).square().mean()).sqrt())


@pytest.mark.parametrize("grain", ["tensor", "token"])
@pytest.mark.parametrize(("width", "block"), [(64, 32), (48, 16)])
def test_learned_blocks_are_orthogonal_and_better_on_new_inputs(width: int, block: int, grain: Grain) -> None:
    x, weight = layer(800, width, 96)
    seen, new = x[:400], x[400:]
    learned = learned_block(seen, weight, block, 4, 8, 60, 0, grain=grain)
    assert (learned.dtype, learned.shape) == (torch.float32, (block, block))
    exact = learned.double()
    torch.testing.assert_close(exact @ exact.T, torch.eye(block).double(), atol=1e-6, rtol=0)
    rounded = Rounded(4, 8, grain)
    assert relative(rounded, new, weight, learned) < 0.93 * relative(rounded, new, weight, hadamard(block, 0))


def test_blocks_are_those_of_the_seed_whatever_was_drawn_before() -> None:
    x, weight = layer(300, 32, 600)
    first = learned_block(x, weight, 16, 4, 8, 10, 1)
    torch.manual_seed(9)
    torch.rand(5)
    assert torch.equal(first, learned_block(x, weight, 16, 4, 8, 10, 1))
    assert not torch.equal(first, learned_block(x, weight, 16, 4, 8, 10, 2))
    with torch.no_grad():
        assert torch.equal(first, learned_block(x, weight, 16, 4, 8, 10, 1))


def test_the_start_is_kept_where_nothing_is_better() -> None:
    x, weight = layer(64, 16, 8)
    assert torch.equal(learned_block(x, weight, 16, 32, 32, 5, 3), hadamard(16, 3)), "float costs nothing"
    assert torch.equal(learned_block(x, torch.zeros(8, 16), 16, 4, 8, 5, 3), hadamard(16, 3))
    assert torch.equal(learned_block(x, weight, 1, 4, 8, 5, 3), hadamard(1, 3))
    # What is learned on and what judges disagree: judged by rows of zeros, nothing is better.
    x[::4] = 0
    assert torch.equal(learned_block(x, weight, 16, 4, 8, 5, 3), hadamard(16, 3))


def test_few_samples_are_enough() -> None:
    x, weight = layer(1, 16, 8)
    learned = learned_block(x, weight, 16, 4, 4, 30, 0)
    rounded = Rounded(4, 4, "tensor")
    assert relative(rounded, x, weight, learned) <= relative(rounded, x, weight, hadamard(16, 0))


@pytest.mark.parametrize(("weights", "inputs"), [(8, 8), (4, 8), (4, 4), (4, 32), (32, 8)])
def test_layers_are_judged_as_the_grids_round_them(weights: int, inputs: int) -> None:
    x, weight = layer(100, 32, 24)
    block = hadamard(8, 0)
    turned, kernel = rotate(x, block), rotate(weight, block)
    if weights != 32:
        scales = weight_scales(kernel, weights, "max")
        kernel = from_integers(to_integers(kernel, scales, weights), scales)
    rows = turned
    if inputs != 32:
        turned = fake_quantize(turned, affine_over(float(turned.min()), float(turned.max()), inputs))
        by_row = weight_scales(rows, inputs, "max")
        rows = from_integers(to_integers(rows, by_row, inputs), by_row)
    exact = x @ weight.T
    for grain, rounded in (("tensor", turned), ("token", rows)):
        expected = (rounded @ kernel.T - exact).square().mean()
        found = Rounded(weights, inputs, "token" if grain == "token" else "tensor").error(x, weight, block)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-10)


def test_rows_of_zeros_stay_zero() -> None:
    x, weight = layer(4, 16, 8)
    x[1] = 0
    weight[3] = 0
    for grain in ("tensor", "token"):
        rounded = Rounded(4, 8, "token" if grain == "token" else "tensor")
        assert float(rounded.error(x[1:2], weight, hadamard(16))) == 0.0
        assert float(rounded.error(x, weight[3:4], hadamard(16))) == 0.0
    assert bool(learned_block(x, weight, 16, 4, 8, 5, 0, grain="token").isfinite().all())


@pytest.mark.parametrize(
    ("samples", "weight", "block", "message"),
    [
        (torch.ones(4, 8), torch.ones(2, 6), 2, r"samples \[4, 8\] do not fit a weight \[2, 6\]"),
        (torch.ones(0, 8), torch.ones(2, 8), 2, "do not fit"),
        (torch.ones(4, 8), torch.full((2, 8), float("nan")), 2, "must be finite"),
        (torch.ones(4, 8), torch.ones(2, 8), 3, "no Hadamard matrix of size 3"),
        (torch.ones(4, 8), torch.ones(2, 8), 16, "blocks of 16 do not divide 8 channels"),
    ],
)
def test_bad_inputs_are_refused(samples: Tensor, weight: Tensor, block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learned_block(samples, weight, block, 4, 8, 5, 0)
