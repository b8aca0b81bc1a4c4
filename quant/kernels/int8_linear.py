"""Linear layers with int8 weights: rows of int8, or float rows where inputs are not rounded. Must not know layers."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.kernels.device import direct
from quant.kernels.forms import NOTHING_AFTER, After, activation_of
from quant.kernels.product import check, multiply


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
    check(x, weight, channel_scale, after, x.shape[0], *weight.shape)
    out: Tensor = (_int8_linear if direct(x) else _int8_linear_op)(
        x,
        weight,
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


def _int8_linear(
    x: Tensor,
    weight: Tensor,
    channel_scale: Tensor,
    row_scale: Tensor | None,
    offset: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    gate: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    after = After(row_scale, offset, bias, activation_of(activation), residual, gate)
    multiply(x, weight, channel_scale, after, out, packed=False)
    return out


_int8_linear_op = torch.library.custom_op("halftone::int8_linear", mutates_args=())(_int8_linear)


@_int8_linear_op.register_fake
def _(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    dtype = rest[-1]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"the last argument is the dtype of the output, not {dtype!r}")
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
