"""What every kernel must compute, as plain functions of torch on any device. Must not know Triton.

Integer sums are exact here as there, so kernels differ from these in the rounding of float32 alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quant.grid import unpack4
from quant.kernels.forms import NOTHING_AFTER, NOTHING_BEFORE, Activation, After, Before, middle, scales_of
from quant.rotation.hadamard import hadamard, rotate


def prepared(x: Tensor, before: Before) -> Tensor:
    """Rows [B, T, K] normalized, modulated, multiplied and rotated: float32 [B, T, K]."""
    y = x.float()
    if before.norm == "layer":
        y = y - y.mean(-1, keepdim=True)
    if before.norm != "none":
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + before.eps)
    y = y if before.weight is None else y * before.weight.float()
    y = y if before.bias is None else y + before.bias.float()
    y = y if before.gain is None else y * before.gain.float()[:, None]
    y = y if before.shift is None else y + before.shift.float()[:, None]
    y = y if before.factors is None else y * before.factors.float()
    if before.signs is not None:
        block = before.signs.float()[:, None] * hadamard(before.signs.numel()).to(y.device)
        y = rotate(y, block)
    return y


def quantize_tokens(x: Tensor, zero_point: int, high: int, before: Before = NOTHING_BEFORE) -> tuple[Tensor, Tensor]:
    """Rows [B, T, K] as int8 [B, T, K] with each row's scale, float32 [B, T]."""
    y = prepared(x, before)
    scale = scales_of(y.amin(-1), y.amax(-1), zero_point, high)
    return _integers(y * (1.0 / scale)[..., None], zero_point, high), scale


def quantize_scaled(x: Tensor, inverse: Tensor, zero_point: int, high: int, before: Before = NOTHING_BEFORE) -> Tensor:
    """Rows [B, T, K] as int8 [B, T, K] by the inverse of given scales, float32 [1] or [B]."""
    return _integers(prepared(x, before) * inverse[:, None, None], zero_point, high)


def _integers(places: Tensor, zero_point: int, high: int) -> Tensor:
    return ((places.round() + zero_point).clamp(0, high) - middle(high)).to(torch.int8)


def linear(
    x: Tensor, weight: Tensor, channel_scale: Tensor, after: After = NOTHING_AFTER, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows [M, K] of int8 or float times weights int8 [N, K] scaled by channel [N]: [M, N] of `dtype`."""
    return finished(_sums(x, weight), channel_scale, after).to(dtype)


def _sums(x: Tensor, weight: Tensor) -> Tensor:
    """Exact: int32 of int8, and float64 of float."""
    if x.dtype is torch.int8:
        return (x.double() @ weight.double().T).to(torch.int32)
    return x.double() @ weight.double().T


def linear4(
    x: Tensor, packed: Tensor, channel_scale: Tensor, after: After = NOTHING_AFTER, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`linear` with weights of 4 bits, uint8 [N, ceil(K / 2)]: byte j of a row holds channel j and, in its high half,
    channel j + ceil(K / 2).
    """
    pairs = unpack4(packed.flatten(), (*packed.shape, 2))
    return linear(x, pairs.transpose(1, 2).flatten(1)[:, : x.shape[1]], channel_scale, after, dtype)


def conv(
    x: Tensor,
    weight: Tensor,
    channel_scale: Tensor,
    blank: int,
    window: tuple[int, int, int, int, int, int],
    after: After = NOTHING_AFTER,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """int8 [B, H, W, C] and int8 [N, kh, kw, C] to [B, H', W', N] of `dtype`.

    `blank` stands for what lies outside of the picture. `window`: stride, padding and dilation, down and across.
    """
    down, across, top, left, apart, aside = window
    wide = functional.pad(x.permute(0, 3, 1, 2).double(), (left, left, top, top), value=blank)
    sums = functional.conv2d(wide, weight.permute(0, 3, 1, 2).double(), None, (down, across), 0, (apart, aside))
    flat = sums.permute(0, 2, 3, 1).flatten(0, 2).to(torch.int32)
    return finished(flat, channel_scale, after).to(dtype).view(*sums.permute(0, 2, 3, 1).shape)


def finished(sums: Tensor, channel_scale: Tensor, after: After) -> Tensor:
    """What follows the sums [M, N] of a product, float32."""
    rows = sums.shape[0]
    y = (sums if after.offset is None else sums + after.offset).float()
    if after.row_scale is not None:
        y = y * _along(after.row_scale, rows)[:, None]
    y = y * channel_scale
    y = activated(y if after.bias is None else y + after.bias.float(), after.activation)
    y = y if after.gate is None else y * _along(after.gate.float(), rows)
    return y if after.residual is None else y + after.residual.float()


def activated(x: Tensor, activation: Activation) -> Tensor:
    """The activation of x."""
    if activation == "silu":
        return functional.silu(x)
    if activation == "none":
        return x
    return functional.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def _along(values: Tensor, rows: int) -> Tensor:
    """Each of the values [R, ...] for rows / R rows."""
    return values.repeat_interleave(rows // max(1, values.shape[0]), 0)
