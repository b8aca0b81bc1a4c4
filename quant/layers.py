"""Layers that compute with integers' values in float arithmetic: the definition of what every backend must compute.

A quantized layer holds the integers; its forward rounds the input to the u8 grid, multiplies weights back to float32
and runs the float operation. Backends see this very graph and may run it in integer kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.grid import Affine, from_integers


class QuantizedLayer(nn.Module):
    """What quantized linears and convolutions share.

    Buffers (all saved, all static; without `grid` they are made empty, to be filled from an artifact):
        integers: int8, shape of the float weight [out, ...].
        scales: [out] float32, distance between neighbouring weights of an output channel.
        input_scale: [] float32, distance between neighbouring inputs.
        input_zero_point: [] int32, the unsigned integer that stands for an input of zero.
        bias: [out] float32, or absent.
    """

    integers: Tensor
    scales: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    bias: Tensor | None

    def __init__(
        self, shape: tuple[int, ...], has_bias: bool, activation_bits: int, device: torch.device | str
    ) -> None:
        super().__init__()
        self.activation_high: int = (1 << activation_bits) - 1
        self.register_buffer("integers", torch.empty(shape, dtype=torch.int8, device=device))
        self.register_buffer("scales", torch.empty(shape[0], device=device))
        self.register_buffer("input_scale", torch.empty((), device=device))
        self.register_buffer("input_zero_point", torch.empty((), dtype=torch.int32, device=device))
        self.register_buffer("bias", torch.empty(shape[0], device=device) if has_bias else None)

    @property
    def weight(self) -> Tensor:
        """The weight [out, ...] in float32, made anew at every access; some models read its dtype."""
        return from_integers(self.integers, self.scales)

    def set_values(self, integers: Tensor, scales: Tensor, bias: Tensor | None, grid: Affine) -> None:
        """Fills all buffers."""
        self.integers, self.scales = integers, scales
        self.bias = None if bias is None else bias.detach().float()
        self.input_scale = torch.tensor(grid.scale, dtype=torch.float32)
        self.input_zero_point = torch.tensor(grid.zero_point, dtype=torch.int32)

    def rounded(self, x: Tensor) -> Tensor:
        """The input at the points of its grid, float32."""
        return torch.fake_quantize_per_tensor_affine(
            x, self.input_scale, self.input_zero_point, 0, self.activation_high
        )


class QuantizedLinear(QuantizedLayer):
    """A linear layer: [..., in] float32 to [..., out] float32; `integers` is [out, in]."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return functional.linear(self.rounded(x), self.weight, self.bias)


class QuantizedConv2d(QuantizedLayer):
    """A convolution with zero padding: [B, in, H, W] to [B, out, H', W']; `integers` is [out, in / groups, kh, kw]."""

    def __init__(self, like: nn.Conv2d, activation_bits: int, device: torch.device | str) -> None:
        super().__init__(tuple(like.weight.shape), like.bias is not None, activation_bits, device)
        self.stride, self.dilation, self.groups = like.stride, like.dilation, like.groups
        self.padding = like.padding

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return functional.conv2d(
            self.rounded(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


FloatLayer = nn.Linear | nn.Conv2d
"""Layers that have a quantized form."""


def as_float_layer(layer: nn.Module) -> FloatLayer | None:
    """The layer itself if it has a quantized form, else None. Subclasses are left alone: they may compute otherwise."""
    if type(layer) is nn.Linear:
        return layer
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return layer
    return None


def quantizable_layers(module: nn.Module) -> dict[str, FloatLayer]:
    """Dotted name to layer of every linear and convolution, under its first name when it has several."""
    found = ((name, as_float_layer(layer)) for name, layer in module.named_modules())
    return {name: layer for name, layer in found if layer is not None}


def layer_kind(layer: FloatLayer) -> str:
    """`linear` or `conv2d`."""
    return "linear" if isinstance(layer, nn.Linear) else "conv2d"


def empty_like(layer: FloatLayer, activation_bits: int, device: torch.device | str = "meta") -> QuantizedLayer:
    """A quantized layer of the same shape, with nothing in it yet."""
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(tuple(layer.weight.shape), layer.bias is not None, activation_bits, device)
    return QuantizedConv2d(layer, activation_bits, device)


def replace_layers(module: nn.Module, replacements: Mapping[str, QuantizedLayer]) -> None:
    """Puts quantized layers in place of those named, wherever the same layer appears in the module.

    Raises:
        KeyError: the module has no layer of such a name.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    fresh = {id(modules[name]): layer for name, layer in replacements.items()}
    for name, old in modules.items():
        if id(old) in fresh:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, fresh[id(old)])


def first_tensor(output: Any) -> Tensor:
    """The tensor in what a model's forward returned: itself, the first of a tuple, or the first field of a dataclass.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"a model must return a tensor first, not {type(output).__name__}")
    return output
