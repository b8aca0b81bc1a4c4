"""Linear layers with int8 weights, or 4-bit ones two to a byte: rows of int8, or float rows. Must not know layers.

A 4-bit weight takes half the memory of int8; it is unpacked in registers on its way into the product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quant.grid import pack4
from quant.kernels.device import direct
from quant.kernels.forms import NOTHING_AFTER, After, activation_of, dtype_of
from quant.kernels.product import check, multiply


def pack_rows(integers: Tensor) -> Tensor:
    """int8 [N, K] of numbers in -8..7 as uint8 [N, ceil(K / 2)]: byte j of a row holds channel j in its low half and
    channel j + ceil(K / 2), or 0 where there is none, in its high half.

    Raises:
        ValueError: an integer does not fit in four bits.
    """
    rows, depth = integers.shape
    half = (depth + 1) // 2
    halves = functional.pad(integers, (0, depth % 2)).view(rows, 2, half)
    return pack4(halves.transpose(1, 2)).view(rows, half)


def int8_linear(
    x: Tensor, weight: Tensor, channel_scale: Tensor, after: After = NOTHING_AFTER, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows [M, K], int8 or float, times weights int8 [N, K] scaled by channel [N] float32: [M, N] of `dtype`.

    Raises:
        ValueError: a shape, a dtype or a layout is not as it must be.
        BackendError: kernels do not run on the device of x.
    """
    if x.ndim != 2 or weight.ndim != 2 or weight.dtype is not torch.int8 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"rows [M, K] and int8 weights [N, K] do not fit: {list(x.shape)} and {weight.dtype} {list(weight.shape)}"
        )
    return _checked(x, weight, channel_scale, after, dtype, packed=False)


def int4_linear(
    x: Tensor, packed: Tensor, channel_scale: Tensor, after: After = NOTHING_AFTER, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows [M, K], int8 or float, times weights of `pack_rows` [N, ceil(K / 2)] scaled by channel [N] float32: [M, N]
    of `dtype`.

    Raises:
        ValueError: a shape, a dtype or a layout is not as it must be.
        BackendError: kernels do not run on the device of x.
    """
    if x.ndim != 2 or packed.ndim != 2 or packed.dtype is not torch.uint8 or packed.shape[1] != (x.shape[1] + 1) // 2:
        raise ValueError(
            f"rows [M, K] and packed weights [N, K / 2] do not fit: {list(x.shape)} and {packed.dtype} "
            f"{list(packed.shape)}"
        )
    return _checked(x, packed, channel_scale, after, dtype, packed=True)


def _checked(
    x: Tensor, weight: Tensor, channel_scale: Tensor, after: After, dtype: torch.dtype, *, packed: bool
) -> Tensor:
    check(x, weight, channel_scale, after, x.shape[0], weight.shape[0], x.shape[1])
    run = _linear if direct(x) else _linear_op
    out: Tensor = run(x, weight, channel_scale, *after.parts(), packed, dtype)
    return out


def _linear(
    x: Tensor,
    weight: Tensor,
    channel_scale: Tensor,
    row_scale: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    gate: Tensor | None,
    packed: bool,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    after = After(row_scale, offset, bias, activation_of(activation), residual, gate)
    multiply(x, weight, channel_scale, after, out, packed=packed)
    return out


_linear_op = torch.library.custom_op("halftone::integer_linear", mutates_args=())(_linear)


@_linear_op.register_fake
def _(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype_of(rest))
