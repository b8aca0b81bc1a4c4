"""Linear layers with 4-bit weights two to a byte: rows of int8, or float rows. Must not know layers.

A weight takes half the memory of int8; it is unpacked in registers on its way into the product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quant.grid import pack4
from quant.kernels.device import direct
from quant.kernels.forms import NOTHING_AFTER, After, activation_of
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
    check(x, packed, channel_scale, after, x.shape[0], packed.shape[0], x.shape[1])
    out: Tensor = (_int4_linear if direct(x) else _int4_linear_op)(
        x,
        packed,
        channel_scale,
        after.row_scale,
        after.offset,
        after.bias,
        after.activation,
        after.residual,
        after.gate,
        dtype,
    )
    return out


def _int4_linear(
    x: Tensor,
    packed: Tensor,
    channel_scale: Tensor,
    row_scale: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty((x.shape[0], packed.shape[0]), dtype=dtype, device=x.device)
    after = After(row_scale, offset, bias, activation_of(activation), residual, gate)
    multiply(x, packed, channel_scale, after, out, packed=True)
    return out


_int4_linear_op = torch.library.custom_op("halftone::int4_linear", mutates_args=())(_int4_linear)


@_int4_linear_op.register_fake
def _(x: Tensor, packed: Tensor, *rest: object) -> Tensor:
    dtype = rest[-1]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"the last argument is the dtype of the output, not {dtype!r}")
    return x.new_empty((x.shape[0], packed.shape[0]), dtype=dtype)
