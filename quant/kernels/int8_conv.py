"""Convolutions of int8 pictures with int8 weights, channels last, as one product. Must not know layers.

Rows of the product are the places of the output, its sums go over taps and channels; no patches are written out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from quant.kernels import tuning
from quant.kernels.device import ceil_div, direct, jit, launch
from quant.kernels.forms import ACTIVATIONS, NOTHING_AFTER, After, activation_of, dtype_of
from quant.kernels.parts import finish
from quant.kernels.product import check, epilogue, tile


class Window(NamedTuple):
    """How a kernel moves over a picture, each down and across."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output(self, height: int, width: int, taps: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for those of a picture.

        Raises:
            ValueError: the picture with its padding is smaller than the kernel, or a step is no step.
        """
        sizes = []
        for size, tap, stride, padding, dilation in zip((height, width), taps, *self, strict=True):
            spare = size + 2 * padding - dilation * (tap - 1) - 1
            if spare < 0 or min(stride, dilation) < 1 or padding < 0:
                raise ValueError(f"a kernel of {taps} moved by {self} does not fit a picture of {height} x {width}")
            sizes.append(spare // stride + 1)
        return sizes[0], sizes[1]


def int8_conv(
    x: Tensor,
    weight: Tensor,
    channel_scale: Tensor,
    blank: int,
    window: Window,
    after: After = NOTHING_AFTER,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """int8 [B, H, W, C] and weights int8 [N, kh, kw, C] scaled by channel [N] float32: [B, H', W', N] of `dtype`.

    `blank`, what stands for zero in x, lies around the pictures.

    Raises:
        ValueError: a shape, a dtype or a layout is not as it must be; x has groups of channels.
        BackendError: kernels do not run on the device of x.
    """
    if x.ndim != 4 or weight.ndim != 4 or x.dtype is not torch.int8 or weight.dtype is not torch.int8:
        raise ValueError(f"pictures and weights must be int8 of 4 dimensions, not {_form(x)} and {_form(weight)}")
    if x.shape[3] != weight.shape[3]:
        groups = " (groups of channels have no kernel)" if x.shape[3] % max(1, weight.shape[3]) == 0 else ""
        raise ValueError(f"pictures of {x.shape[3]} channels do not fit weights of {weight.shape[3]}{groups}")
    if not -128 <= blank <= 127:
        raise ValueError(f"what stands for zero must be an int8, not {blank}")
    high, wide = window.output(x.shape[1], x.shape[2], (weight.shape[1], weight.shape[2]))
    check(x, weight, channel_scale, after, x.shape[0] * high * wide, weight.shape[0], weight[:1].numel())
    steps = [*window.stride, *window.padding, *window.dilation]
    run = _int8_conv if direct(x) else _int8_conv_op
    out: Tensor = run(x, weight, channel_scale, blank, steps, *after.parts(), dtype)
    return out


def _int8_conv(
    x: Tensor,
    weight: Tensor,
    channel_scale: Tensor,
    blank: int,
    window: list[int],
    row_scale: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty(_shape(x, weight, window), dtype=dtype, device=x.device)
    after = After(row_scale, offset, bias, activation_of(activation), residual, gate)
    rows, columns, depth = out.numel() // max(1, out.shape[3]), weight.shape[0], weight.shape[3]
    config = tuning.config("int8_conv", rows, columns, weight[:1].numel())
    launch(
        _convolve,
        ceil_div(rows, config.rows) * ceil_div(columns, config.columns),
        x,
        x,
        weight,
        out,
        channel_scale,
        *epilogue(after, rows),
        rows,
        columns,
        depth,
        *x.shape[1:3],
        *out.shape[1:3],
        *window,
        blank,
        across=weight.shape[2],
        taps=weight.shape[1] * weight.shape[2],
        whole=depth % config.depth == 0,
        activation=ACTIVATIONS.index(after.activation),
        **config.as_launched(),
    )
    return out


_int8_conv_op = torch.library.custom_op("halftone::int8_conv", mutates_args=())(_int8_conv)


@_int8_conv_op.register_fake
def _(x: Tensor, weight: Tensor, _: Tensor, __: int, window: list[int], *rest: object) -> Tensor:
    return x.new_empty(_shape(x, weight, window), dtype=dtype_of(rest))


def _shape(x: Tensor, weight: Tensor, window: list[int]) -> tuple[int, int, int, int]:
    moved = Window((window[0], window[1]), (window[2], window[3]), (window[4], window[5]))
    high, wide = moved.output(x.shape[1], x.shape[2], (weight.shape[1], weight.shape[2]))
    return x.shape[0], high, wide, weight.shape[0]


@jit(unspecialized=("rows_of_scale", "rows_of_gate", "blank"))
def _convolve(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, channel_scale: tl.tensor, row_scale: tl.tensor,
    rows_of_scale:     tl.tensor, offset: tl.tensor, bias: tl.tensor, residual: tl.tensor, gate: tl.tensor,
    rows_of_gate: tl.tensor, stride_of_gate: tl.tensor, rows: tl.tensor, columns: tl.tensor, depth: tl.tensor,
    height: tl.tensor, width:     tl.tensor, out_height: tl.tensor, out_width: tl.tensor, stride_down: tl.tensor,
    stride_across: tl.tensor, pad_down: tl.tensor, pad_across: tl.tensor, apart_down: tl.tensor,
    apart_across: tl.tensor, blank: tl.tensor, across: tl.constexpr, taps: tl.constexpr, whole: tl.constexpr,
    activation: tl.constexpr, block_rows:     tl.constexpr, block_columns: tl.constexpr, block_depth: tl.constexpr,
    group: tl.constexpr,
) -> None:  # fmt: skip
    row, column = tile(rows, columns, block_rows, block_columns, group)
    place = row % (out_height * out_width)
    top = place // out_width * stride_down - pad_down
    left = place % out_width * stride_across - pad_across
    picture = (row // (out_height * out_width)).to(tl.int64) * height
    inner = tl.arange(0, block_depth)
    of_weight = weight + (column % columns).to(tl.int64)[None, :] * (taps * depth)
    total = tl.zeros((block_rows, block_columns), dtype=tl.int32)
    parts = tl.cdiv(depth, block_depth)
    for step in range(taps * parts):
        tap, channel = step // parts, step % parts * block_depth + inner
        down, aside = top + tap // across * apart_down, left + tap % across * apart_across
        inside = (row < rows) & (down >= 0) & (down < height) & (aside >= 0) & (aside < width)
        of_x = x + ((picture + down) * width + aside)[:, None] * depth + channel[None, :]
        at = of_weight + tap * depth + channel[:, None]
        if whole:
            seen, held = tl.load(of_x, mask=inside[:, None], other=0), tl.load(at)
        else:
            within = channel < depth
            seen = tl.load(of_x, mask=inside[:, None] & within[None, :], other=0)
            held = tl.load(at, mask=within[:, None], other=0)
        # chosen after the load: the masked lanes of a pipelined load are zero
        seen = tl.where(inside[:, None], seen, blank.to(tl.int8))
        total = tl.dot(seen, held, total, out_dtype=tl.int32)
    finish(
        total, out, row, column, rows, columns, channel_scale, row_scale, rows_of_scale, offset, bias, residual,
        gate, rows_of_gate, stride_of_gate, activation,
    )  # fmt: skip


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
