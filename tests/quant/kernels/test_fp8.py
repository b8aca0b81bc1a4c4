"""Linear layers in fp8: rounding as torch rounds, products near those of float, and what has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quant.kernels.fp8_linear import fp8_linear, quantize_fp8, to_fp8, why_not
from tests.quant.kernels.on import DEVICE, check_operator


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("shape", [(1, 16), (5, 33), (0, 16), (9, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_rounded_as_torch_rounds(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = (numbers(*shape) * 5).to(dtype)
    rows, scale = quantize_fp8(x)
    assert rows.dtype is torch.float8_e4m3fn and rows.shape == shape and scale.shape == (shape[0], 1)
    expected = (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(rows.float(), expected.float())
    if x.numel():
        assert torch.allclose(scale[:, 0], x.float().abs().amax(1) / 448)


def test_small_numbers_and_halves() -> None:
    x = torch.cat([torch.linspace(-0.02, 0.02, 300), torch.linspace(0, 33, 500), torch.tensor([448.0])])[None].to(
        DEVICE
    )
    rows, scale = quantize_fp8(x)
    assert scale.item() == 1.0
    assert torch.equal(rows.float(), x.to(torch.float8_e4m3fn).float())


def test_products_are_near_those_of_float() -> None:
    integers = (numbers(32, 48, seed=1) * 40).clamp(-127, 127).to(torch.int8)
    x, scales, bias = numbers(5, 48), numbers(32, seed=2).abs() / 64, numbers(32, seed=3)
    expected = x @ (integers.float() * scales[:, None]).T + bias
    found = fp8_linear(x, to_fp8(integers), scales, bias)
    assert found.dtype is torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.1
    assert fp8_linear(x[:0], to_fp8(integers), scales, bias, torch.bfloat16).shape == (0, 32)


def test_weights_of_four_bits_come_over_exactly() -> None:
    integers = torch.arange(-8, 8, dtype=torch.int8).view(1, 16)
    assert torch.equal(to_fp8(integers).float(), integers.float())


def test_what_has_no_product_is_told() -> None:
    assert why_not(32, 48, torch.device("cpu")) == ""
    assert "not 40 to 32" in why_not(32, 40, torch.device("cpu"))
    with pytest.raises(ValueError, match="no fp8 product: channels must be multiples of 16, not 48 to 7"):
        fp8_linear(numbers(2, 48), to_fp8(torch.ones(7, 48, device=DEVICE)), numbers(7))
    with pytest.raises(ValueError, match="do not fit"):
        fp8_linear(numbers(2, 48), numbers(16, 48), numbers(16))
    with pytest.raises(ValueError, match="rows must be contiguous float"):
        quantize_fp8(numbers(4, 4).T)
    check_operator(torch.ops.halftone.quantize_fp8.default, (numbers(3, 20),))
