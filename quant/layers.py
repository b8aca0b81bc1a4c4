"""Layers that compute with integers' values in float arithmetic: the definition of what every backend must compute.

A quantized layer holds the integers; its forward rounds the input to the u8 grid, multiplies weights back to float32
and runs the float operation. Backends see this very graph and may run it in integer kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.bearer import DtypeBearer
from quant.clock import BRANCHES, MomentHolder
from quant.grid import Affine, along_first, from_integers
from quant.tokens import round_between, round_tokens


class InputGrid(NamedTuple):
    """How a layer's input is rounded, as far as shapes go.

    Attributes:
        bits: of the unsigned integers; None leaves the input float.
        slots: 0 for one scale, else the number of slots of which each has a scale for every branch.
        grain: what a scale is for; with "token" scales come from the input itself, and none is stored.
        zero_point: "token" gives each token one of its own; no integer kernel takes that.
    """

    bits: int | None
    slots: int = 0
    grain: Literal["tensor", "token"] = "tensor"
    zero_point: Literal["shared", "token"] = "shared"


class QuantizedLayer(DtypeBearer, ABC):
    """What quantized linears and convolutions share.

    Buffers (all saved, all static; without values they are made empty, to be filled from an artifact):
        integers: int8, shape of the float weight [out, ...].
        scales: [out] float32, distance between neighbouring weights of an output channel.
        input_scale: [] float32, distance between neighbouring inputs; [slots * BRANCHES] where it depends on time, of
            one slot, [BRANCHES], where on the branch alone.
        input_zero_point: [] int32, the unsigned integer that stands for an input of zero, at any time.
        bias: [out] float32, or absent.
        zero_points: [out] int8, the integers that stand for a weight of zero; absent where that is 0.
    Absent input buffers: the input stays float, or each token has a scale, and maybe a zero point, of its own.

    A scale that depends on time needs no weights that do: the input is divided by the moment's scale, rounded on a grid
    of scale 1, and the output multiplied back, so one packed kernel serves all steps. Scales of tokens likewise.

    Attributes:
        rounds_input: false while only weights are to count, as in reconstruction; backends never change it.
        holder: where the moment is found; set by `bind`.
        by_token: whether the input is rounded token by token, as it comes.
        token_dims: dimensions of the input that a token spans: of a convolution's, a whole picture.
    """

    integers: Tensor
    scales: Tensor
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    bias: Tensor | None
    zero_points: Tensor | None
    token_dims: tuple[int, ...] = (-1,)

    def __init__(self, shape: tuple[int, ...], has_bias: bool, grid: InputGrid, device: torch.device | str) -> None:
        super().__init__()
        self.activation_high = 0 if grid.bits is None else (1 << grid.bits) - 1
        self.rounds_input = grid.bits is not None
        self.by_token = grid.bits is not None and grid.grain == "token"
        self.holder = MomentHolder()
        count = (grid.slots * BRANCHES,) if grid.slots else ()
        rounds = grid.bits is not None
        self.register_buffer("integers", torch.empty(shape, dtype=torch.int8, device=device))
        self.register_buffer("scales", torch.empty(shape[0], device=device))
        self.register_buffer("input_scale", torch.empty(count, device=device) if rounds and not self.by_token else None)
        zero_point = torch.empty((), dtype=torch.int32, device=device)
        self.register_buffer("input_zero_point", zero_point if rounds and grid.zero_point == "shared" else None)
        self.register_buffer("bias", torch.empty(shape[0], device=device) if has_bias else None)
        self.register_buffer("zero_points", None)

    @property
    def weight(self) -> Tensor:
        """The weight [out, ...] in float32, made anew at every access; some models read its dtype."""
        if self.zero_points is None:
            return from_integers(self.integers, self.scales)
        return from_integers(self.integers.int() - along_first(self.zero_points, self.integers), self.scales)

    @property
    def follows_time(self) -> bool:
        """Whether the input's scale depends on slot and branch."""
        return self.input_scale is not None and self.input_scale.ndim > 0

    def set_weight(self, integers: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """Fills the weight's buffers."""
        self.integers, self.scales = integers, scales
        self.bias = None if bias is None else bias.detach().float()

    def set_grid(self, grid: Affine) -> None:
        """Fills the input's buffers with one grid for all times."""
        self.input_scale = torch.tensor(grid.scale, dtype=torch.float32)
        self.set_zero_point(grid.zero_point)

    def set_time_grids(self, scales: Tensor, zero_point: int) -> None:
        """Fills the input's buffers with a scale for each slot and branch: [slots, BRANCHES] float32."""
        self.input_scale = scales.detach().float().reshape(-1)
        self.set_zero_point(zero_point)

    def set_zero_point(self, zero_point: int) -> None:
        """Fills the buffer of the input's zero point alone."""
        self.input_zero_point = torch.tensor(zero_point, dtype=torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        if self.by_token and self.rounds_input:
            return self._by_token(x)
        scale, zero_point = self.input_scale, self.input_zero_point
        if scale is None or zero_point is None or not self.rounds_input:
            return self.operate(x, self.weight, self.bias)
        if not self.follows_time:
            return self.operate(self._rounded(x, scale, zero_point), self.weight, self.bias)
        now = scale[self.holder.now.branch if len(scale) == BRANCHES else self.holder.now.key]
        rounded = self._rounded(x * along_first(1.0 / now, x), scale.new_ones(()), zero_point)
        output = self.operate(rounded, self.weight, None)
        return self._with_bias(output * along_first(now, output))

    def _by_token(self, x: Tensor) -> Tensor:
        if self.input_zero_point is None:  # each token has its own
            return self.operate(round_between(x, self.activation_high, self.token_dims), self.weight, self.bias)
        integers, scale = round_tokens(x, int(self.input_zero_point), self.activation_high, self.token_dims)
        return self._with_bias(self.operate(integers, self.weight, None) * scale)

    def _with_bias(self, output: Tensor) -> Tensor:
        return output if self.bias is None else output + self.along_outputs(self.bias)

    def _rounded(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, self.activation_high)

    @abstractmethod
    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The float operation; gradients may be taken of all three."""

    @abstractmethod
    def along_outputs(self, bias: Tensor) -> Tensor:
        """A bias [out] shaped so that it adds to the output."""


class QuantizedLinear(QuantizedLayer):
    """A linear layer: [..., in] float32 to [..., out] float32; `integers` is [out, in]."""

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b."""
        return functional.linear(x, weight, bias)

    def along_outputs(self, bias: Tensor) -> Tensor:
        """As it is."""
        return bias


class QuantizedConv2d(QuantizedLayer):
    """A convolution with zero padding: [B, in, H, W] to [B, out, H', W']; `integers` is [out, in / groups, kh, kw]."""

    token_dims = (-3, -2, -1)

    def __init__(
        self, like: nn.Conv2d, grid: InputGrid, device: torch.device | str, *, inputs: int | None = None
    ) -> None:
        shape = (like.out_channels, inputs or like.weight.shape[1], *like.kernel_size)
        super().__init__(shape, like.bias is not None, grid, device)
        self.stride, self.dilation, self.groups = like.stride, like.dilation, like.groups
        self.padding = like.padding

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def along_outputs(self, bias: Tensor) -> Tensor:
        """[out, 1, 1]."""
        return bias[:, None, None]


class Composite(nn.Module):
    """Several layers with integers of their own in place of one float layer."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


class SplitLayer(Composite):
    """A layer on concatenated inputs: each part of the channels has scales and integers of its own; outputs add up.

    Q-Diffusion (Li et al., ICCV 2023, section 4.3): the two halves of a UNet's skip concatenation have ranges too
    different for one scale. Only the first part carries the bias.
    """

    def __init__(self, parts: list[QuantizedLayer], sizes: tuple[int, ...], dim: int) -> None:
        super().__init__(parts)
        self.sizes, self.dim = sizes, dim

    @property
    def weight(self) -> Tensor:
        """The weight of the float layer that this stands for, [out, in, ...] float32."""
        return torch.cat([part.weight for part in parts_of(self)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        pieces = torch.split(x, list(self.sizes), dim=self.dim)
        first, *others = (part(piece) for part, piece in zip(self.parts, pieces, strict=True))
        output: Tensor = sum(others, first)
        return output


Quantized = QuantizedLayer | Composite
"""What stands in a float layer's place."""


def parts_of(layer: Quantized) -> list[QuantizedLayer]:
    """The layers with integers of their own: the layer itself, or its parts."""
    return [layer] if isinstance(layer, QuantizedLayer) else [own for _, own in quantized_layers(layer)]


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


def empty_like(
    layer: FloatLayer, grid: InputGrid, device: torch.device | str = "meta", *, sizes: tuple[int, ...] = ()
) -> Quantized:
    """A quantized layer of the same shape with nothing in it yet; with `sizes`, split along its input channels.

    Raises:
        ValueError: the sizes do not add up to the input channels, or the layer is grouped.
    """
    if not sizes:
        return _whole(layer, grid, device)
    inputs = layer.weight.shape[1]
    if sum(sizes) != inputs or min(sizes) < 1 or (isinstance(layer, nn.Conv2d) and layer.groups != 1):
        raise ValueError(f"a layer of {inputs} input channels cannot be split into {sizes}")
    parts = [_whole(layer, grid, device, inputs=size) for size in sizes]
    for part in parts[1:]:
        part.bias = None
    return SplitLayer(parts, sizes, -1 if isinstance(layer, nn.Linear) else 1)


def _whole(
    layer: FloatLayer, grid: InputGrid, device: torch.device | str, *, inputs: int | None = None
) -> QuantizedLayer:
    if isinstance(layer, nn.Linear):
        return QuantizedLinear((layer.out_features, inputs or layer.in_features), layer.bias is not None, grid, device)
    return QuantizedConv2d(layer, grid, device, inputs=inputs)


def replace_layers(module: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Puts other layers in place of those named, wherever the same layer appears in the module.

    Raises:
        KeyError: the module has no layer of such a name.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    fresh = {id(modules[name]): layer for name, layer in replacements.items()}
    for name, old in modules.items():
        if id(old) in fresh:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, fresh[id(old)])


def bind(module: nn.Module, holder: MomentHolder) -> None:
    """Has every layer of a module that depends on time read the moment from one holder."""
    for layer in module.modules():
        if hasattr(layer, "holder"):
            layer.holder = holder  # type: ignore[assignment]


def quantized_layers(module: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """(dotted name, layer) of every layer that holds integers."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer))
