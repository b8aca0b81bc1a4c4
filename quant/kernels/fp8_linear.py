"""Linear layers in fp8 (e4m3): rows rounded with a scale each, and torch's own product. Must not know layers.

Rows and weights keep four significant bits, whatever their size: other rounding than that of integers, on GPUs of
compute capability 8.9 and more. Integer weights come over by their values: those of 4 bits exactly.
"""

from __future__ import annotations

from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from quant.kernels.device import ceil_div, direct, jit, launch, power_of_two
from quant.kernels.quantize import MOST_NUMBERS

LARGEST: Final = 448.0
"""Of e4m3."""

MULTIPLE: Final = 16
"""What input and output channels must be multiples of."""

LEAST_CAPABILITY: Final = (8, 9)


def why_not(columns: int, depth: int, device: torch.device) -> str:
    """Why weights [columns, depth] have no fp8 product on a device; nothing if they have."""
    if columns % MULTIPLE or depth % MULTIPLE:
        return f"channels must be multiples of {MULTIPLE}, not {depth} to {columns}"
    if depth > MOST_NUMBERS:
        return f"a row has at most {MOST_NUMBERS} numbers, not {depth}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no fp8: that takes compute capability 8.9"
    return ""


def to_fp8(integers: Tensor) -> Tensor:
    """Integer weights int8 [N, K] as e4m3 of the same values, rounded to four significant bits."""
    return integers.float().to(torch.float8_e4m3fn)


def fp8_linear(
    x: Tensor, weight: Tensor, channel_scale: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Float rows [M, K] times e4m3 weights [N, K] scaled by channel [N] float32, plus bias [N]: [M, N] of `dtype`.

    The product itself is rounded to bfloat16.

    Raises:
        ValueError: a shape or a dtype is not as it must be, or the weights have no fp8 product on this device.
        BackendError: kernels do not run on the device of x.
    """
    if x.ndim != 2 or weight.dtype is not torch.float8_e4m3fn or x.shape[1:] != weight.shape[1:]:
        raise ValueError(
            f"rows [M, K] and e4m3 weights [N, K] do not fit: {list(x.shape)} and {weight.dtype} {list(weight.shape)}"
        )
    reason = why_not(weight.shape[0], weight.shape[1], x.device)
    if reason:
        raise ValueError(f"no fp8 product: {reason}")
    rows, row_scale = quantize_fp8(x)
    if not x.shape[0]:
        return x.new_empty((0, weight.shape[0]), dtype=dtype)
    out = torch._scaled_mm(
        rows, weight.t(), scale_a=row_scale, scale_b=channel_scale[None], out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return (out if bias is None else out.float() + bias).to(dtype)


def quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Float rows [M, K] as e4m3 [M, K] with the scale of each, float32 [M, 1].

    Raises:
        ValueError: x is not contiguous float rows.
        BackendError: kernels do not run on the device of x.
    """
    if x.ndim != 2 or not x.is_floating_point() or not x.is_contiguous() or x.shape[1] > MOST_NUMBERS:
        raise ValueError(f"rows must be contiguous float [M, K], K at most {MOST_NUMBERS}: {x.dtype} {list(x.shape)}")
    rows, scale = (_quantize_fp8 if direct(x) else _quantize_fp8_op)(x)
    return rows, scale


def _quantize_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)
    block = power_of_two(x.shape[1])
    rows = max(1, min(16, 2048 // block))
    programs = ceil_div(x.shape[0], rows) if x.shape[1] else 0
    sizes = {"block_rows": rows, "block": block, "num_warps": min(16, max(4, block // 1024))}
    launch(_round, programs, x, x, out, scale, *x.shape, **sizes)
    return out, scale


_quantize_fp8_op = torch.library.custom_op("halftone::quantize_fp8", mutates_args=())(_quantize_fp8)


@_quantize_fp8_op.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), x.new_empty((x.shape[0], 1), dtype=torch.float32)


@jit()
def _round(
    x: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    block_rows: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row, column = tl.program_id(0) * block_rows + tl.arange(0, block_rows), tl.arange(0, block)[None, :]
    mask = (row < rows)[:, None] & (column < width)
    place = row.to(tl.int64)[:, None] * width + column
    y = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    own = tl.maximum(tl.max(tl.abs(y), 1) / 448.0, 1e-30)
    tl.store(scale + row, own, mask=row < rows)
    inside = tl.minimum(tl.maximum(tl.div_rn(y, own[:, None] + tl.zeros_like(y)), -448.0), 448.0)
    tl.store(out + place, _nearest(inside).to(tl.float8e4nv), mask=mask)


@jit()
def _nearest(y: tl.tensor) -> tl.tensor:
    """y (float32, at most 448) as the nearest numbers of e4m3, halves to even: their conversion rounds nothing.

    The interpreter's conversion loses the carry out of the fraction.
    """
    bits = y.to(tl.int32, bitcast=True)
    fraction = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    small = (y + 24576.0) - 24576.0  # multiples of 2^-9 below 2^-6
    return tl.where(tl.abs(y) < 0.015625, small, fraction.to(tl.float32, bitcast=True))
