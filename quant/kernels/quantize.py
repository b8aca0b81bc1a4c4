"""Float rows to int8 in one pass, after a norm, a modulation and a rotation if asked. Must not know layers or products.

A row x of K numbers becomes round(x / s) + z - o within 0 - o .. high - o, o = (high + 1) / 2: the unsigned integers of
`quant.grid` and `quant.tokens`, moved so that they fit in int8. What a product makes of z - o its offset takes out.
Before rounding, x is normalized, modulated, smoothed and rotated as `quant.kernels.forms.Before` says.
"""

from __future__ import annotations

from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from quant.kernels.device import ceil_div, direct, jit, launch, power_of_two
from quant.kernels.forms import NORMS, NOTHING_BEFORE, Before, norm_of
from quant.kernels.parts import rotated, rounded

MOST_NUMBERS: Final = 1 << 15
"""Of a row: a program holds all of it in registers."""

MOST_ROTATED: Final = 128
"""Channels of a block that are rotated here; larger blocks are matrix products."""


def quantize_tokens(x: Tensor, zero_point: int, high: int, before: Before = NOTHING_BEFORE) -> tuple[Tensor, Tensor]:
    """Rows x [B, T, K], float of any strides, as int8 [B, T, K] with the scale of each, float32 [B, T].

    Raises:
        ValueError: a shape, a dtype or the zero point is not as it must be.
        BackendError: kernels do not run on the device of x.
    """
    _check(x, zero_point, high, before)
    out, scale = (_tokens if direct(x) else _tokens_op)(x, zero_point, high, *_parts(before))
    return out, scale


def quantize_scaled(x: Tensor, inverse: Tensor, zero_point: int, high: int, before: Before = NOTHING_BEFORE) -> Tensor:
    """Rows x [B, T, K], float of any strides, as int8 [B, T, K] by given scales: `inverse` [1] or [B] float32 is 1 / s.

    Raises:
        ValueError: a shape, a dtype or the zero point is not as it must be.
        BackendError: kernels do not run on the device of x.
    """
    _check(x, zero_point, high, before)
    if inverse.dtype is not torch.float32 or inverse.shape not in ((1,), (x.shape[0],)):
        raise ValueError(f"scales of {x.shape[0]} rows must be float32 [1] or [{x.shape[0]}], not {_form(inverse)}")
    out: Tensor = (_scaled if direct(x) else _scaled_op)(x, inverse, zero_point, high, *_parts(before))
    return out


_Parts = tuple[
    str,
    float,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
    Tensor | None,
]


def _parts(before: Before) -> _Parts:
    return (
        before.norm,
        before.eps,
        before.weight,
        before.bias,
        before.gain,
        before.shift,
        before.factors,
        before.signs,
    )


def _tokens(
    x: Tensor,
    zero_point: int,
    high: int,
    norm: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    factors: Tensor | None,
    signs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    before = Before(norm_of(norm), eps, weight, bias, gain, shift, factors, signs)
    _launch(x, None, scale, out, (zero_point, high), before)
    return out, scale


def _scaled(
    x: Tensor,
    inverse: Tensor,
    zero_point: int,
    high: int,
    norm: str,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    factors: Tensor | None,
    signs: Tensor | None,
) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    before = Before(norm_of(norm), eps, weight, bias, gain, shift, factors, signs)
    _launch(x, inverse, None, out, (zero_point, high), before)
    return out


_tokens_op = torch.library.custom_op("halftone::quantize_tokens", mutates_args=())(_tokens)


@_tokens_op.register_fake
def _(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:2], dtype=torch.float32)


_scaled_op = torch.library.custom_op("halftone::quantize_scaled", mutates_args=())(_scaled)


@_scaled_op.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


def _launch(
    x: Tensor, inverse: Tensor | None, scale: Tensor | None, out: Tensor, grid: tuple[int, int], before: Before
) -> None:
    zero_point, high = grid
    batch, length, width = x.shape
    block = power_of_two(width)
    rows = max(1, min(16, 2048 // block))
    launch(
        _quantize,
        ceil_div(batch * length, rows) if width else 0,
        x,
        x,
        out,
        inverse,
        scale,
        before.weight,
        before.bias,
        before.gain,
        before.shift,
        before.factors,
        before.signs,
        *x.stride(),
        _between_rows(before.gain),
        _between_rows(before.shift),
        batch * length,
        length,
        width,
        zero_point,
        high,
        before.eps,
        norm=NORMS.index(before.norm),
        stages=0 if before.signs is None else before.signs.numel().bit_length() - 1,
        one_scale=inverse is not None and inverse.numel() == 1,
        block_rows=rows,
        block=block,
        num_warps=min(16, max(4, block // 1024)),
    )


@jit(unspecialized=("zero_point", "high", "length"))
def _quantize(
    x: tl.tensor,
    out: tl.tensor,
    inverse: tl.tensor,
    scale: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    factors: tl.tensor,
    signs: tl.tensor,
    stride_batch: tl.tensor,
    stride_row: tl.tensor,
    stride_number: tl.tensor,
    stride_gain: tl.tensor,
    stride_shift: tl.tensor,
    rows: tl.tensor,
    length: tl.tensor,
    width: tl.tensor,
    zero_point: tl.tensor,
    high: tl.tensor,
    eps: tl.tensor,
    norm: tl.constexpr,
    stages: tl.constexpr,
    one_scale: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block)[None, :]
    batch, within = row // length, column < width
    mask = (row < rows)[:, None] & within
    start = batch.to(tl.int64) * stride_batch + (row % length).to(tl.int64) * stride_row
    y = tl.load(x + start[:, None] + column.to(tl.int64) * stride_number, mask=mask, other=0.0).to(tl.float32)
    y = _normed(y, mask, within, column, width, eps, weight, bias, norm)
    if gain is not None:
        y = y * tl.load(gain + batch[:, None] * stride_gain + column, mask=mask, other=0.0).to(tl.float32)
    if shift is not None:
        y = y + tl.load(shift + batch[:, None] * stride_shift + column, mask=mask, other=0.0).to(tl.float32)
    if factors is not None:
        y = y * tl.load(factors + column, mask=within, other=0.0).to(tl.float32)
    if stages > 0:
        y = y * tl.load(signs + column % (1 << stages)).to(tl.float32)
        y = rotated(y, block_rows, block, stages)
    least, most = -zero_point.to(tl.float32), (high - zero_point).to(tl.float32)
    if scale is not None:
        above = tl.where(most > 0, tl.div_rn(tl.maximum(tl.max(y, 1), 0.0), tl.maximum(most, 1.0)), 0.0)
        below = tl.where(least < 0, tl.div_rn(-tl.minimum(tl.min(y, 1), 0.0), tl.maximum(-least, 1.0)), 0.0)
        own = tl.maximum(tl.maximum(above, below), 1e-30)
        tl.store(scale + row, own, mask=row < rows)
        per_row = tl.div_rn(own * 0.0 + 1.0, own)
    else:
        at = row * 0 if one_scale else batch
        per_row = tl.load(inverse + at, mask=row < rows, other=1.0)
    integers = rounded(y * per_row[:, None], least, most) + (zero_point - (high + 1) // 2).to(tl.float32)
    tl.store(out + row.to(tl.int64)[:, None] * width + column, integers.to(tl.int8), mask=mask)


@jit()
def _normed(
    y: tl.tensor,
    mask: tl.tensor,
    within: tl.tensor,
    column: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    norm: tl.constexpr,
) -> tl.tensor:
    """Normalized, with the norm's own weight and bias; without a bias zero outside of the mask, as y is."""
    if norm == 1:
        y = tl.where(mask, y - (tl.sum(y, 1) / width)[:, None], 0.0)
    if norm > 0:
        y = y * tl.rsqrt(tl.sum(y * y, 1) / width + eps)[:, None]
    if weight is not None:
        y = y * tl.load(weight + column, mask=within, other=0.0).to(tl.float32)
    if bias is not None:
        y = y + tl.load(bias + column, mask=within, other=0.0).to(tl.float32)
    return y


def _between_rows(values: Tensor | None) -> int:
    return 0 if values is None else values.stride(0)


def _check(x: Tensor, zero_point: int, high: int, before: Before) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"rows must be float [B, T, K], not {_form(x)}")
    if not 3 <= high <= 255 or high & (high + 1) or not 0 <= zero_point <= high:
        raise ValueError(
            f"a grid is 0 .. 2^b - 1 of 2 to 8 bits with its zero point on it, not {zero_point} on 0 .. {high}"
        )
    batch, _, width = x.shape
    if width > MOST_NUMBERS:
        raise ValueError(f"a row has at most {MOST_NUMBERS} numbers, not {width}")
    sizes = {"weight": (width,), "bias": (width,), "gain": (batch, width), "shift": (batch, width), "factors": (width,)}
    for name, size in sizes.items():
        part: Tensor | None = getattr(before, name)
        if part is not None and (part.shape != size or (width > 1 and part.stride(-1) != 1)):
            raise ValueError(f"{name} must be {list(size)} with its numbers side by side, not {_form(part)}")
    signs = 2 if before.signs is None else before.signs.numel()
    if signs & (signs - 1) or not 2 <= signs <= MOST_ROTATED or (before.signs is not None and width % signs):
        raise ValueError(
            f"blocks of {signs} channels are not rotated: a power of two of 2 to {MOST_ROTATED} that divides {width}"
        )


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
