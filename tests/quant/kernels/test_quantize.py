"""Rows to int8: as the definition says, over odd shapes, dtypes, strides, norms, modulations and rotations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from quant.kernels import reference
from quant.kernels.forms import Before, Norm, middle
from quant.kernels.quantize import quantize_scaled, quantize_tokens
from quant.tokens import round_tokens
from tests.quant.kernels.on import DEVICE, check_operator

SHAPES = [(1, 1, 1), (1, 1, 33), (2, 5, 48), (3, 7, 31), (0, 4, 8), (2, 0, 8), (1, 19, 130)]
GRIDS = [(128, 255), (0, 255), (255, 255), (37, 255), (8, 15), (3, 15)]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def before(width: int, batch: int, norm: Norm, *, block: int = 0) -> Before:
    signs = numbers(block, seed=5).sign() if block else None
    gain, shift = numbers(batch, width, seed=3), numbers(batch, width, seed=4)
    weight, bias, factors = (numbers(width, seed=seed).abs() + 0.5 for seed in (1, 2, 6))
    return Before(norm, 1e-5, weight, bias if norm == "layer" else None, gain, shift, factors, signs)


def assert_nearly(found: Tensor, expected: Tensor) -> None:
    """Equal, but for numbers that lay between two integers within the rounding of float32."""
    apart = (found.int() - expected.int()).abs()
    assert found.dtype is torch.int8 and found.shape == expected.shape
    assert int(apart.max() if apart.numel() else 0) <= 1
    assert int((apart > 0).sum()) <= 1 + apart.numel() // 200


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tokens_are_rounded_exactly_as_defined(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    x = numbers(*shape) * 3
    found, scale = quantize_tokens(x, *grid)
    expected, own = reference.quantize_tokens(x, *grid) if x.numel() else (found, scale)
    assert torch.equal(found, expected)
    assert torch.equal(scale, own) and scale.shape == shape[:2]


def test_the_definition_is_that_of_the_layers() -> None:
    x = numbers(2, 5, 48).cpu()
    integers, scale = reference.quantize_tokens(x, 37, 255)
    expected, own = round_tokens(x, 37, 255)
    assert torch.equal(integers.float() + middle(255) - 37, expected)
    assert torch.equal(scale, own[..., 0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("each", [False, True], ids=["one scale", "a scale each"])
def test_given_scales(shape: tuple[int, ...], grid: tuple[int, int], each: bool) -> None:
    x = numbers(*shape)
    scale = torch.linspace(0.01, 0.03, shape[0] if each else 1).to(DEVICE)
    expected = reference.quantize_scaled(x, 1.0 / scale, *grid)
    assert torch.equal(quantize_scaled(x, 1.0 / scale, *grid), expected)
    if x.numel() and not each:
        grid_of_torch = torch.fake_quantize_per_tensor_affine(x, float(scale), grid[0], 0, grid[1])
        assert torch.equal((expected.float() + middle(grid[1]) - grid[0]) * scale, grid_of_torch)


def test_halves_go_to_even() -> None:
    x = torch.tensor([[[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 300.0, -300.0]]], device=DEVICE)
    found = quantize_scaled(x, torch.ones(1, device=DEVICE), 128, 255)
    assert found.flatten().tolist() == [0, 2, 2, 0, -2, 126, 127, -128]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats(dtype: torch.dtype) -> None:
    x = numbers(2, 5, 48, dtype=dtype)
    for found, expected in zip(quantize_tokens(x, 128, 255), reference.quantize_tokens(x, 128, 255), strict=True):
        assert torch.equal(found, expected)


def test_rows_of_zeros_stay_zeros() -> None:
    found, scale = quantize_tokens(torch.zeros(1, 2, 8, device=DEVICE), 100, 255)
    assert set(found.flatten().tolist()) == {100 - 128}
    assert scale.tolist() == [[pytest.approx(1e-30)] * 2]


def test_pictures_are_read_where_they_lie() -> None:
    picture = numbers(2, 12, 5, 3)
    for x in (picture, picture.contiguous(memory_format=torch.channels_last)):
        rows = x.flatten(2).transpose(1, 2)
        assert torch.equal(quantize_tokens(rows, 128, 255)[0], quantize_tokens(rows.contiguous(), 128, 255)[0])
    part = numbers(2, 9, 40)[:, 2:7, 3:35]
    assert torch.equal(quantize_tokens(part, 128, 255)[0], quantize_tokens(part.contiguous(), 128, 255)[0])


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("block", [0, 2, 16])
@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 5, 48), (1, 9, 80)], ids=str)
def test_norm_modulation_and_rotation_come_first(shape: tuple[int, int, int], norm: Norm, block: int) -> None:
    x, first = numbers(*shape) * 2 + 1, before(shape[2], shape[0], norm, block=block)
    found, scale = quantize_tokens(x, 128, 255, first)
    expected, own = reference.quantize_tokens(x, 128, 255, first)
    assert_nearly(found, expected)
    assert torch.allclose(scale, own, rtol=1e-5)
    inverse = torch.full((1,), 20.0, device=DEVICE)
    assert_nearly(quantize_scaled(x, inverse, 90, 255, first), reference.quantize_scaled(x, inverse, 90, 255, first))


def test_modulations_are_read_where_they_lie() -> None:
    x, table = numbers(3, 5, 48), numbers(3, 2, 48, seed=1)
    gain, shift = table.unbind(1)
    assert not gain.is_contiguous()
    for first in (Before(gain=gain, shift=shift), Before(gain=gain[:1].expand(3, 48)), Before("rms", shift=shift)):
        found, scale = quantize_tokens(x, 128, 255, first)
        expected, own = reference.quantize_tokens(x, 128, 255, first)
        assert_nearly(found, expected)
        assert torch.allclose(scale, own, rtol=1e-5)


@pytest.mark.parametrize("block", [2, 4, 8, 32, 64, 128])
def test_blocks_of_every_size(block: int) -> None:
    x, first = numbers(1, 3, 3 * block), Before(signs=numbers(block, seed=1).sign())
    assert_nearly(quantize_tokens(x, 128, 255, first)[0], reference.quantize_tokens(x, 128, 255, first)[0])


def test_the_norm_is_that_of_torch() -> None:
    x, width = numbers(2, 5, 48), (48,)
    weight, bias = numbers(48, seed=1), numbers(48, seed=2)
    own = reference.prepared(x, Before("layer", 1e-6, weight, bias))
    assert torch.allclose(own, torch.nn.functional.layer_norm(x, width, weight, bias, 1e-6), atol=1e-5)
    own = reference.prepared(x, Before("rms", 1e-6, weight))
    assert torch.allclose(own, torch.nn.functional.rms_norm(x, width, weight, 1e-6), atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    x = numbers(1, 3, 6)
    with pytest.raises(ValueError, match=r"rows must be float \[B, T, K\], not torch.int8"):
        quantize_tokens(x.to(torch.int8), 128, 255)
    with pytest.raises(ValueError, match=r"not 300 on 0 \.\. 255"):
        quantize_tokens(x, 300, 255)
    with pytest.raises(ValueError, match=r"not 100 on 0 \.\. 200"):
        quantize_tokens(x, 100, 200)
    with pytest.raises(ValueError, match="at most 32768 numbers, not 40000"):
        quantize_tokens(numbers(1, 1, 40000), 128, 255)
    with pytest.raises(ValueError, match=r"scales of 1 rows must be float32 \[1\] or \[1\]"):
        quantize_scaled(x, numbers(2), 128, 255)
    for signs in (3, 4, 256):
        with pytest.raises(ValueError, match=f"blocks of {signs} channels are not rotated"):
            quantize_tokens(x, 128, 255, Before(signs=numbers(signs).sign()))
    whole = before(6, 1, "layer")
    for name, first in {
        "weight": replace(whole, weight=numbers(5)),
        "gain": replace(whole, gain=numbers(2, 6)),
        "shift": replace(whole, shift=numbers(1, 12)[:, ::2]),
    }.items():
        with pytest.raises(ValueError, match=rf"{name} must be \[(1, )?6\] with its numbers side by side"):
            quantize_tokens(x, 128, 255, first)


def test_compiled_graphs_do_not_break() -> None:
    def both(x: Tensor) -> Tensor:
        integers, scale = quantize_tokens(x * 2, 128, 255)
        return integers * scale[..., None] + quantize_scaled(x, scale.amax()[None], 128, 255)

    x = numbers(2, 3, 16)
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), both(x))


def test_the_operators_keep_their_promises() -> None:
    x, none = numbers(2, 3, 16), (None,) * 6
    check_operator(torch.ops.halftone.quantize_tokens.default, (x, 128, 255, "none", 1e-5, *none))
    inverse = torch.ones(1, device=DEVICE)
    check_operator(torch.ops.halftone.quantize_scaled.default, (x, inverse, 128, 255, "none", 1e-5, *none))
