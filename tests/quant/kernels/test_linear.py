"""Linear layers of 8 and 4 bits: exact integer sums and all that follows them, as the definition says."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import pytest
import torch
from torch import Tensor

from quant.errors import BackendError
from quant.kernels import reference
from quant.kernels.forms import ACTIVATIONS, NOTHING_AFTER, Activation, After, activation_of, norm_of, offset_of
from quant.kernels.linear import int4_linear, int8_linear, pack_rows
from quant.kernels.quantize import quantize_tokens
from tests.quant.kernels.on import DEVICE, check_operator

SHAPES = [(1, 1, 1), (1, 40, 33), (0, 8, 16), (3, 5, 7), (17, 19, 130), (70, 9, 16), (5, 0, 8), (2, 66, 97)]
"""M, N, K."""


class Linear(Protocol):
    """A kernel, or its definition."""

    def __call__(
        self, x: Tensor, weight: Tensor, channel_scale: Tensor, after: After = ..., dtype: torch.dtype = ..., /
    ) -> Tensor: ...


KERNELS: dict[int, tuple[Linear, Linear]] = {8: (int8_linear, reference.linear), 4: (int4_linear, reference.linear4)}


def integers(*shape: int, bits: int = 8, seed: int = 0) -> Tensor:
    half = 1 << (bits - 1)
    return torch.randint(-half, half, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.int8)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def made(bits: int, columns: int, depth: int) -> Tensor:
    weight = integers(columns, depth, bits=bits, seed=1)
    return pack_rows(weight) if bits == 4 else weight


def after(rows: int, columns: int, activation: Activation = "none", *, each: int = 1) -> After:
    """Everything that can follow a product; `each`: rows of a scale and of a gate."""
    count = rows // each
    return After(
        row_scale=numbers(count, seed=2).abs() * 1e-3,
        offset=torch.randint(-5000, 5000, (columns,), generator=torch.Generator().manual_seed(3)).to(DEVICE).int(),
        bias=numbers(columns, seed=4),
        activation=activation,
        residual=numbers(rows, columns, seed=5),
        gate=numbers(count, columns, seed=6),
    )


@pytest.mark.parametrize("bits", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_sums_are_exact(shape: tuple[int, int, int], bits: int) -> None:
    rows, columns, depth = shape
    kernel, definition = KERNELS[bits]
    x, weight, ones = integers(rows, depth), made(bits, columns, depth), torch.ones(columns, device=DEVICE)
    assert torch.equal(kernel(x, weight, ones), definition(x, weight, ones))
    assert kernel(x, weight, ones).shape == (rows, columns)


def test_the_largest_sums_do_not_overflow() -> None:
    x, weight = (torch.full((1, 4000), -127, dtype=torch.int8, device=DEVICE) for _ in range(2))
    offset = torch.tensor([-(127**2) * 4000 + 3], dtype=torch.int32, device=DEVICE)
    found = int8_linear(x, weight, torch.ones(1, device=DEVICE), After(offset=offset))
    assert found.item() == 3


@pytest.mark.parametrize("bits", KERNELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("each", [1, 9, 18])
def test_what_follows_the_sums(bits: int, activation: Activation, each: int) -> None:
    rows, columns, depth = 18, 21, 50
    kernel, definition = KERNELS[bits]
    x, weight, scales = integers(rows, depth), made(bits, columns, depth), numbers(columns).abs()
    follows = after(rows, columns, activation, each=each)
    expected = definition(x, weight, scales, follows)
    assert torch.allclose(kernel(x, weight, scales, follows), expected, rtol=1e-5, atol=1e-5)
    for left_out in ("row_scale", "offset", "bias", "residual", "gate"):
        fewer = replace(follows, **{left_out: None}, activation="none")
        found, expected = kernel(x, weight, scales, fewer), definition(x, weight, scales, fewer)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-4), left_out


def test_gates_are_read_where_they_lie() -> None:
    x, weight, scales = integers(18, 50), integers(21, 50), numbers(21).abs()
    gate = numbers(2, 3, 21, seed=6)[:, 1]
    assert not gate.is_contiguous()
    for follows in (After(gate=gate), After(gate=gate[:1].expand(6, 21))):
        found, expected = int8_linear(x, weight, scales, follows), reference.linear(x, weight, scales, follows)
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float_rows_and_outputs(bits: int, dtype: torch.dtype) -> None:
    kernel, definition = KERNELS[bits]
    for rows, columns, depth in SHAPES:
        x, weight, scales = numbers(rows, depth).to(dtype), made(bits, columns, depth), numbers(columns).abs() / 64
        follows = replace(after(rows, columns), offset=None)
        found, expected = (one(x, weight, scales, follows, dtype) for one in (kernel, definition))
        assert found.dtype is dtype
        rough = 1e-5 if dtype is torch.float32 else 8e-3
        assert torch.allclose(found.float(), expected.float(), rtol=rough, atol=rough)


def test_a_quantized_linear_is_near_the_float_one() -> None:
    x, weight = numbers(2, 9, 64), numbers(24, 64, seed=1)
    scales = weight.abs().amax(1) / 127
    integer = (weight / scales[:, None]).round().to(torch.int8)
    rows, row_scale = quantize_tokens(x, 100, 255)
    follows = After(row_scale=row_scale.flatten(), offset=offset_of(integer, 100, 255))
    found = int8_linear(rows.flatten(0, 1), integer, scales, follows)
    expected = x.flatten(0, 1) @ weight.T
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert offset_of(integer, 128, 255) is None


@pytest.mark.parametrize("depth", [1, 2, 7, 16])
def test_packing_by_rows(depth: int) -> None:
    weight = integers(3, depth, bits=4)
    identity = torch.eye(depth, device=DEVICE)
    found = reference.linear4(identity, pack_rows(weight), torch.ones(3, device=DEVICE))
    assert torch.equal(found.T, weight.float())
    with pytest.raises(ValueError, match=r"four bits hold -8\.\.7"):
        pack_rows(weight + 20)


def test_what_does_not_fit_is_refused() -> None:
    x, weight, scales = integers(6, 8), integers(4, 8), numbers(4)
    with pytest.raises(ValueError, match=r"do not fit: \[6, 8\] and torch.int8 \[4, 7\]"):
        int8_linear(x, weight[:, :7], scales)
    with pytest.raises(ValueError, match=r"do not fit: \[6, 8\] and torch.int8 \[4, 8\]"):
        int4_linear(x, weight, scales)
    with pytest.raises(ValueError, match="rows must be int8 or float of 16 or 32 bits, not"):
        int8_linear(x.int(), weight, scales)
    with pytest.raises(ValueError, match="weights must be contiguous"):
        int8_linear(x, integers(8, 4).T, scales)
    with pytest.raises(ValueError, match="at most 65536 products, not 70000"):
        int8_linear(integers(1, 70000), integers(4, 70000), scales)
    refused = {
        "channel scales must be": (numbers(5), NOTHING_AFTER),
        "biases must be": (scales, After(bias=numbers(3))),
        "a residual must be": (scales, After(residual=numbers(4, 6))),
        "4 row scales are not shared out evenly among 6 rows": (scales, After(row_scale=numbers(4))),
        "row scales must be float32": (scales, After(row_scale=numbers(6).half())),
        "gates must be": (scales, After(gate=numbers(6, 3))),
        "offsets must be": (scales, After(offset=numbers(4))),
    }
    for told, (own, follows) in refused.items():
        with pytest.raises(ValueError, match=told):
            int8_linear(x, weight, own, follows)
    with pytest.raises(ValueError, match="float rows have no zero point"):
        int8_linear(x.float(), weight, scales, After(offset=torch.zeros(4, dtype=torch.int32, device=DEVICE)))
    with pytest.raises(ValueError, match="no activation 'relu'; known: none, gelu_tanh"):
        activation_of("relu")
    with pytest.raises(ValueError, match="no norm 'batch'; known: none, layer, rms"):
        norm_of("batch")


def test_devices_without_kernels_are_told() -> None:
    x, weight = integers(2, 8).to("meta"), integers(4, 8).to("meta")
    with pytest.raises(BackendError, match="not on meta"):
        from quant.kernels.product import multiply

        multiply(x, weight, numbers(4), NOTHING_AFTER, numbers(2, 4).to("meta"), packed=False)


@pytest.mark.parametrize("bits", KERNELS)
def test_compiled_graphs_do_not_break(bits: int) -> None:
    kernel, x, weight = KERNELS[bits][0], integers(5, 16), made(bits, 6, 16)

    def twice(x: Tensor, scale: Tensor) -> Tensor:
        return kernel(x, weight, scale, After(activation="silu"), torch.bfloat16) * 2

    scale = numbers(6)
    compiled = torch.compile(twice, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, scale), twice(x, scale))


@pytest.mark.parametrize("bits", KERNELS)
def test_the_operator_keeps_its_promises(bits: int) -> None:
    follows = replace(after(4, 6), activation="gelu").parts()
    arguments = (integers(4, 10), made(bits, 6, 10), numbers(6), *follows, bits == 4, torch.float16)
    check_operator(torch.ops.halftone.integer_linear.default, arguments)
