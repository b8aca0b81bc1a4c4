"""The product of rows and weights in tiles, and what is launched for it. Must not know operators.

Weights lie by output channel, int8 [N, K], or 4-bit two to a byte [N, ceil(K / 2)]: byte j of a row holds channel j
and, in its high half, channel j + ceil(K / 2), so that a tile of bytes is two tiles of weights as they lie.
"""

from __future__ import annotations

from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from quant.kernels import tuning
from quant.kernels.device import ceil_div, interpreted, jit, launch
from quant.kernels.forms import ACTIVATIONS, After
from quant.kernels.parts import finish

MOST_SUMMED: Final = 1 << 16
"""Products of one output: so many of unsigned 8 bits with 8 bits never leave int32."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def multiply(x: Tensor, weight: Tensor, channel_scale: Tensor, after: After, out: Tensor, *, packed: bool) -> None:
    """Fills `out` [M, N], float, with what rows [M, K] of int8 or float make of weights (see above) and `after`."""
    rows, depth = x.shape
    columns = weight.shape[0]
    config = tuning.config(f"int{4 if packed else 8}_linear{_kind(x)}", rows, columns, depth)
    step = ceil_div(depth, 2) if packed else depth
    launch(
        _multiply,
        ceil_div(rows, config.rows) * ceil_div(columns, config.columns),
        x,
        x,
        weight.view(torch.int8),  # shifts of signed bytes keep the sign
        out,
        channel_scale,
        *epilogue(after, rows),
        rows,
        columns,
        depth,
        step,
        whole=depth % (config.depth * (2 if packed else 1)) == 0,
        packed=packed,
        integer=x.dtype is torch.int8,
        widened=interpreted(),
        activation=ACTIVATIONS.index(after.activation),
        **config.as_launched(),
    )


def _kind(x: Tensor) -> str:
    if x.dtype is torch.int8:
        return ""
    return "_float" if x.dtype is torch.float32 else "_half"


def epilogue(after: After, rows: int) -> tuple[Tensor | int | None, ...]:
    """The arguments of `quant.kernels.parts.finish` that come of an `After`, in its order."""
    return (
        after.row_scale,
        _each(after.row_scale, rows),
        after.offset,
        after.bias,
        after.residual,
        after.gate,
        _each(after.gate, rows),
        0 if after.gate is None else after.gate.stride(0),
    )


def _each(values: Tensor | None, rows: int) -> int:
    """Of how many rows in turn a value is."""
    return max(1, rows if values is None else rows // max(1, values.shape[0]))


@jit(unspecialized=("rows_of_scale", "rows_of_gate"))
def _multiply(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, channel_scale: tl.tensor, row_scale: tl.tensor,
    rows_of_scale: tl.tensor, offset: tl.tensor, bias: tl.tensor, residual: tl.tensor, gate: tl.tensor,
    rows_of_gate: tl.tensor, stride_of_gate: tl.tensor, rows: tl.tensor, columns: tl.tensor, depth: tl.tensor,
    step: tl.tensor, whole: tl.constexpr, packed: tl.constexpr, integer: tl.constexpr, widened: tl.constexpr,
    activation: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr, block_depth: tl.constexpr,
    group: tl.constexpr,
) -> None:  # fmt: skip
    row, column = tile(rows, columns, block_rows, block_columns, group)
    inner = tl.arange(0, block_depth)
    # rows and columns beyond the end read others again, instead of being masked: their sums are never stored
    of_x = x + (row % rows).to(tl.int64)[:, None] * depth + inner[None, :]
    of_weight = weight + (column % columns).to(tl.int64)[None, :] * step + inner[:, None]
    total = tl.zeros((block_rows, block_columns), dtype=tl.int32 if integer else tl.float32)
    for start in range(0, step, block_depth):
        if whole:
            first, held = tl.load(of_x), tl.load(of_weight)
        else:
            first = tl.load(of_x, mask=inner[None, :] < step - start, other=0)
            held = tl.load(of_weight, mask=inner[:, None] < step - start, other=0)
        if packed:
            second = tl.load(of_x + step, mask=inner[None, :] < depth - step - start, other=0)
            total = added(total, first, ((held << 4).to(tl.int8) >> 4).to(tl.int8), integer, widened)
            total = added(total, second, (held >> 4).to(tl.int8), integer, widened)
        else:
            total = added(total, first, held, integer, widened)
        of_x += block_depth
        of_weight += block_depth
    finish(
        total, out, row, column, rows, columns, channel_scale, row_scale, rows_of_scale, offset, bias, residual,
        gate, rows_of_gate, stride_of_gate, activation,
    )  # fmt: skip


@jit()
def added(total: tl.tensor, x: tl.tensor, weight: tl.tensor, integer: tl.constexpr, widened: tl.constexpr) -> tl.tensor:
    """total + x weight, for int8 weights: exact in int32, or in float32 without its narrower forms.

    `widened` multiplies bfloat16 as float32, which gives the same: the interpreter takes bfloat16 for integers.
    """
    if integer:
        total = tl.dot(x, weight, total, out_dtype=tl.int32)
    elif widened:
        total = tl.dot(x.to(tl.float32), weight.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee")
    return total


@jit()
def tile(
    rows: tl.tensor, columns: tl.tensor, block_rows: tl.constexpr, block_columns: tl.constexpr, group: tl.constexpr
) -> tl.tensor:
    """Rows and columns of this program's tile. Tiles of `group` rows run next to each other: they share weights."""
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, block_rows), tl.cdiv(columns, block_columns)
    first = program // (group * across) * group
    together = tl.minimum(down - first, group)
    place = program % (group * across)
    row = (first + place % together) * block_rows + tl.arange(0, block_rows)
    column = (place // together) * block_columns + tl.arange(0, block_columns)
    return row, column


def check(x: Tensor, weight: Tensor, channel_scale: Tensor, after: After, rows: int, columns: int, depth: int) -> None:
    """Refuses what a product [rows, depth] x [depth, columns] and its `after` cannot be.

    Raises:
        ValueError: a dtype, a shape or a layout is not as it must be.
    """
    if x.dtype is not torch.int8 and x.dtype not in _FLOATS:
        raise ValueError(f"rows must be int8 or float of 16 or 32 bits, not {x.dtype}")
    if depth > MOST_SUMMED:
        raise ValueError(f"int32 holds sums of at most {MOST_SUMMED} products, not {depth}")
    _contiguous({"rows": x, "weights": weight, "channel scales": channel_scale})
    _require("channel scales", channel_scale, (columns,), (torch.float32,))
    _require("offsets", after.offset, (columns,), (torch.int32,))
    _require("biases", after.bias, (columns,), _FLOATS)
    _require("a residual", after.residual, (rows, columns), _FLOATS)
    for name, values in (("row scales", after.row_scale), ("gates", after.gate)):
        if values is not None:
            count = values.shape[0] if values.ndim else 0
            if (count == 0 and rows) or rows % max(1, count):
                raise ValueError(f"{count} {name} are not shared out evenly among {rows} rows")
            _require(name, values, (count, columns)[: 1 if name == "row scales" else 2], _FLOATS, apart=name == "gates")
    if after.row_scale is not None and after.row_scale.dtype is not torch.float32:
        raise ValueError(f"row scales must be float32, not {after.row_scale.dtype}")
    if x.dtype is not torch.int8 and after.offset is not None:
        raise ValueError("float rows have no zero point, and so no offsets")


def _require(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], *, apart: bool = False
) -> None:
    """`apart`: rows may lie at any distance."""
    if tensor is None:
        return
    if tensor.shape != shape or tensor.dtype not in dtypes:
        told = " or ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} must be {told} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
    _contiguous({name: tensor[:1] if apart else tensor})


def _contiguous(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; strides are {list(tensor.stride())}")
