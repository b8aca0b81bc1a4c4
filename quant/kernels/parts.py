"""What kernels are made of: rounding, Hadamard rotation, activations, and what follows a product. Knows no operator."""

from __future__ import annotations

import triton.language as tl

from quant.kernels.device import jit


@jit()
def rounded(values: tl.tensor, least: tl.tensor, most: tl.tensor) -> tl.tensor:
    """Values as the nearest whole numbers within whole bounds, halves to even, float32 still. NaN becomes a bound.

    Adding 1.5 * 2^23 leaves no bits for a fraction. Clamping first keeps the sum exact, and keeps the multiplication
    before from being contracted with it, which would round once where torch rounds twice.
    """
    inside = tl.minimum(tl.maximum(values, least), most)
    return (inside + 12582912.0) - 12582912.0


@jit()
def rotated(x: tl.tensor, rows: tl.constexpr, width: tl.constexpr, stages: tl.constexpr) -> tl.tensor:
    """x [rows, width] with each block of 2^stages neighbours times Sylvester's orthonormal Hadamard matrix."""
    for stage in tl.static_range(stages):
        pairs = tl.reshape(x, (rows * width // (2 << stage), 2, 1 << stage))
        first, second = tl.split(tl.permute(pairs, (0, 2, 1)))
        x = tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 2, 1)), (rows, width))
    if stages > 0:
        x = x * (2.0 ** (-0.5 * stages))
    return x


@jit()
def sigmoid(x: tl.tensor) -> tl.tensor:
    """Of float32 x; nothing overflows."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@jit()
def activated(x: tl.tensor, activation: tl.constexpr) -> tl.tensor:
    """The activation of float32 x by its place in `quant.kernels.forms.ACTIVATIONS`."""
    if activation == 1:  # x (1 + tanh u) / 2 is x sigmoid(2 u)
        x = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif activation == 2:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif activation == 3:
        x = x * sigmoid(x)
    return x


@jit()
def finish(
    total: tl.tensor,
    out: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    channel_scale: tl.tensor,
    row_scale: tl.tensor,
    rows_of_scale: tl.tensor,
    offset: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    gate: tl.tensor,
    rows_of_gate: tl.tensor,
    stride_of_gate: tl.tensor,
    activation: tl.constexpr,
) -> None:
    """Stores residual + gate * activation((total + offset) * scales + bias) for a tile of a product.

    total: int32 or float32 [m, n]; row, column: where it lies in `out` [rows, columns]. Absent pointers are None.
    """
    within_rows, within = row < rows, column < columns
    if offset is not None:
        total += tl.load(offset + column, mask=within, other=0)[None, :]
    y = total.to(tl.float32)
    if row_scale is not None:
        y *= tl.load(row_scale + row // rows_of_scale, mask=within_rows, other=0.0)[:, None]
    y *= tl.load(channel_scale + column, mask=within, other=0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + column, mask=within, other=0.0).to(tl.float32)[None, :]
    y = activated(y, activation)
    mask = within_rows[:, None] & within[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    if gate is not None:
        at = (row // rows_of_gate)[:, None] * stride_of_gate + column[None, :]
        y *= tl.load(gate + at, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, y, mask=mask)
