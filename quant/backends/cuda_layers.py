"""Layers that run the GPU kernels, made of quantized layers with the same integers. Must not know executables or calls.

What is computed is `quant.layers`' definition; rows of inputs are rounded once for all layers that round them alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quant.backends.cuda_waiting import Normed, Product, Switch
from quant.errors import BackendError
from quant.kernels import reference
from quant.kernels.forms import NOTHING_BEFORE, After, Before, middle, offset_of, scales_of
from quant.kernels.int8_conv import Window, int8_conv
from quant.kernels.linear import int4_linear, int8_linear, pack_rows
from quant.kernels.quantize import quantize_scaled, quantize_tokens
from quant.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from quant.rotation.transform import InputTransform

READ_BY_MODELS = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding")
"""Attributes of linears and convolutions that models read."""

Made = TypeVar("Made")


class Once:
    """Keeps the last two results that were made of tensors, for whoever asks for the same again.

    A tensor counts as the same while it is the same object and was not written to since (by torch, which counts).
    """

    def __init__(self) -> None:
        self._kept: list[tuple[weakref.ref[Tensor], int, Hashable, Any]] = []

    def get(self, x: Tensor, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives for x under a key; made again only if it is not kept."""
        if torch.compiler.is_compiling():  # equal operations of a graph are merged by the compiler
            return make()
        for owner, version, known, made in self._kept:
            if owner() is x and version == x._version and known == key:
                return made  # type: ignore[no-any-return]
        result = make()
        self._kept = [*self._kept[-1:], (weakref.ref(x), x._version, key, result)]
        return result

    def forget(self) -> None:
        """Lets go of everything."""
        self._kept = []


def stand_in(dtype: torch.dtype, device: torch.device | None = None) -> nn.Parameter:
    """What models read a dtype of where a layer has no float weight: its weight, and a module's first parameter."""
    return nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)


class KernelLayer(nn.Module):
    """What the layers here share: how inputs are rounded, and what follows sums.

    Buffers:
        channel_scale: [out] float32.
        offset: [out] int32, what the inputs' zero point takes; absent for 0.
        bias_values: [out] float32, or absent.
        input_scale: [1] or [slots * BRANCHES] float32; absent where tokens bring their own, or inputs stay float.
    """

    channel_scale: Tensor
    offset: Tensor | None
    bias_values: Tensor | None
    input_scale: Tensor | None
    stand_in: nn.Parameter

    def __init__(self, layer: QuantizedLayer, once: Once, dtype: torch.dtype) -> None:
        super().__init__()
        self.once, self.holder = once, layer.holder
        self.high, self.rounds, self.by_token = layer.activation_high, layer.rounds_input, layer.by_token
        self.zero_point = 0 if layer.input_zero_point is None else int(layer.input_zero_point)
        self.follows_time = layer.follows_time
        scale = None if layer.input_scale is None else layer.input_scale.reshape(-1)
        offset = offset_of(layer.integers, self.zero_point, self.high) if self.rounds else None
        self.register_buffer("channel_scale", layer.scales.float().contiguous())
        self.register_buffer("offset", offset)
        self.register_buffer("bias_values", layer.bias)
        self.register_buffer("input_scale", scale)
        self.stand_in = stand_in(dtype, layer.scales.device)
        grid = b"" if scale is None else scale.cpu().numpy().tobytes()
        self._grid = (self.by_token, self.zero_point, self.high, grid)

    @property
    def weight(self) -> Tensor:
        """An empty tensor: models read a weight's dtype and device. The weight itself is in no float form."""
        return self.stand_in

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.bias_values

    def now(self, count: int) -> Tensor:
        """Scales of the inputs at the current moment, [1] or [count] float32.

        Raises:
            BackendError: the moment is of another number of rows.
        """
        if self.input_scale is None:
            raise BackendError("a layer whose inputs bring their scales was asked for one of its own")
        if not self.follows_time:
            return self.input_scale
        scale = self.input_scale[self.holder.now.key]
        if scale.shape[0] not in (1, count):
            raise BackendError(f"an input of {count} rows meets a moment of {scale.shape[0]} rows")
        return scale

    def after(self, row_scale: Tensor | None) -> After:
        """What follows the sums."""
        return After(row_scale=row_scale, offset=self.offset, bias=self.bias_values)


class KernelLinear(KernelLayer):
    """A linear layer [..., in] to [..., out], both of the model's dtype. Weights of 4 bits are held two to a byte.

    Buffers, beside those of `KernelLayer`:
        integers: int8 [out, in], or uint8 [out, ceil(in / 2)], see `quant.kernels.linear.pack_rows`.
        factors: [in] float32, signs: [b] float32, of a transform of the input (`quant.rotation.transform`) that is
            computed on the way; each absent where there is none.
    """

    integers: Tensor
    factors: Tensor | None
    signs: Tensor | None

    def __init__(
        self,
        layer: QuantizedLinear,
        once: Once,
        dtype: torch.dtype,
        waits: Switch,
        transform: InputTransform | None = None,
    ) -> None:
        super().__init__(layer, once, dtype)
        self.waits = waits
        self.packed = _fits_in_four_bits(layer.integers)
        held = pack_rows(layer.integers) if self.packed else layer.integers.contiguous()
        self.register_buffer("integers", held)
        self.register_buffer("factors", None if transform is None else transform.inverse_factors)
        self.register_buffer("signs", None if transform is None else transform.signs)
        self._key = (*self._grid, id(transform) if transform is not None else None)

    @property
    def kernel(self) -> str:
        """What runs it."""
        return f"{'int4' if self.packed else 'int8'}_linear{'' if self.rounds else ' of float inputs'}"

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; it may wait for what follows (`quant.backends.cuda_waiting`)."""
        rows, row_scale = self._rows(x)
        shape = torch.Size((*x.shape[:-1], self.integers.shape[0]))
        if not self.waits.closed:
            return self._product(rows, self.after(row_scale), x.dtype).view(shape)
        return Product(
            shape, x.dtype, x.device, lambda after, dtype: self._product(rows, after, dtype), self.after(row_scale)
        )

    def anew(self, x: Tensor) -> Tensor:
        """What rounding rows [M, in] and multiplying them takes, at scales of 1 where they follow time: to be timed."""
        one = torch.ones(1, device=x.device) if self.follows_time else None
        rows, row_scale = self._rounded(x[None], self._before(), one)
        return self._product(rows, self.after(row_scale), x.dtype)

    def _product(self, rows: Tensor, after: After, dtype: torch.dtype) -> Tensor:
        product = int4_linear if self.packed else int8_linear
        return product(rows, self.integers, self.channel_scale, after, dtype)

    def _before(self, before: Before = NOTHING_BEFORE) -> Before:
        return replace(before, factors=self.factors, signs=self.signs)

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[M, in] int8 with their scales, or as they are where inputs stay float."""
        if not self.rounds:
            return x.reshape(-1, x.shape[-1]).contiguous(), None
        width = x.shape[-1]
        count = x.shape[0] if x.ndim > 1 else 1
        length = x.numel() // max(1, count * width)
        if isinstance(x, Normed):
            return self.once.get(x, self._key, lambda: self._rounded(x.rows(), self._before(x.before)))
        return self.once.get(x, self._key, lambda: self._rounded(x.reshape(count, length, width), self._before()))

    def _rounded(self, rows: Tensor, before: Before, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # without a rotation, a compiler that sees plain operations fuses them with what stands before
        plain = torch.compiler.is_compiling() and self.signs is None
        if self.by_token:
            tokens = reference.quantize_tokens if plain else quantize_tokens
            integers, scale = tokens(rows, self.zero_point, self.high, before)
        else:
            scale = self.now(rows.shape[0]) if scale is None else scale
            scaled = reference.quantize_scaled if plain else quantize_scaled
            integers = scaled(rows, scale.reciprocal(), self.zero_point, self.high, before)
        return integers.flatten(0, 1), scale.flatten()


def _fits_in_four_bits(integers: Tensor) -> bool:
    return integers.numel() > 0 and int(integers.min()) >= -8 and int(integers.max()) <= 7


class KernelConv(KernelLayer):
    """A convolution with zero padding: [B, in, H, W] to [B, out, H', W'] of the model's dtype, channels last in memory.

    Buffers, beside those of `KernelLayer`:
        integers: int8 [out, kh, kw, in].
    """

    integers: Tensor

    def __init__(self, layer: QuantizedConv2d, once: Once, dtype: torch.dtype) -> None:
        super().__init__(layer, once, dtype)
        (down, across), (apart, aside), padding = layer.stride, layer.dilation, layer.padding
        if isinstance(padding, str):
            raise BackendError(f"a convolution whose padding is {padding!r} has no kernel")
        self.window = Window((down, across), (padding[0], padding[1]), (apart, aside))
        self.register_buffer("integers", layer.integers.permute(0, 2, 3, 1).contiguous())
        self._is_linear = self.integers.shape[1:3] == (1, 1) and self.window == Window()

    @property
    def kernel(self) -> str:
        """What runs it."""
        return "int8_linear" if self._is_linear else "int8_conv"

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output.

        Raises:
            BackendError: the input has another number of dimensions.
        """
        if x.ndim != 4:
            raise BackendError(f"a convolution takes [B, C, H, W], not {list(x.shape)}")
        batch, channels, height, width = x.shape
        rows, scale = self.once.get(x, self._grid, lambda: self._rounded(x))
        if self._is_linear:
            flat = rows.view(-1, channels)
            out = int8_linear(flat, self.integers.flatten(1), self.channel_scale, self.after(scale), x.dtype)
            return out.view(batch, height, width, out.shape[1]).permute(0, 3, 1, 2)
        picture = rows.view(batch, height, width, channels)
        blank = self.zero_point - middle(self.high)
        out = int8_conv(picture, self.integers, self.channel_scale, blank, self.window, self.after(scale), x.dtype)
        return out.permute(0, 3, 1, 2)

    def _rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H * W, C] int8, and scales [1] or [B]."""
        if self.by_token:
            least, most = x.amin((1, 2, 3)).float(), x.amax((1, 2, 3)).float()
            scale = scales_of(least, most, self.zero_point, self.high)
        else:
            scale = self.now(x.shape[0])
        rows = x.flatten(2).transpose(1, 2)
        return quantize_scaled(rows, scale.reciprocal(), self.zero_point, self.high, NOTHING_BEFORE), scale


class SharedTransform(nn.Module):
    """A transform of inputs that is computed once for all layers that are fed the same tensor."""

    def __init__(self, transform: InputTransform, once: Once) -> None:
        super().__init__()
        self.transform, self.once = transform, once

    def forward(self, x: Tensor) -> Tensor:
        """(x / s) G."""
        made: Tensor = self.once.get(x, id(self.transform), lambda: self.transform(x))
        return made


class FloatArithmetic(nn.Module):
    """A quantized layer that no kernel runs, computed as `quant.layers` says, in float32 amid a model of any dtype."""

    stand_in: nn.Parameter

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.stand_in = stand_in(dtype)

    @property
    def weight(self) -> Tensor:
        """An empty tensor: models read a weight's dtype."""
        return self.stand_in

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, of the input's dtype."""
        output: Tensor = self.layer(x.float())
        return output.to(x.dtype)
