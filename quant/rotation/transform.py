"""The change of a layer's input that its weight takes back: smoothing, rotation, permutation. Knows no model.

x becomes (x / s) G and W becomes (W s) G, with s positive and G orthogonal, so the layer's output stays what it was
(SmoothQuant's s, Xiao et al., ICML 2023; QuaRot's and DuQuant's G). The order is TR-DQ's: smooth, rotate, permute,
rotate again.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from quant.layers import FloatLayer
from quant.rotation.greedy import Blocks
from quant.rotation.hadamard import hadamard, rotate
from quant.rotation.report import TransformForm

INNER: Final = "inner"
"""Name of the layer with the changed weight inside of a `Transformed`."""

_READ_BY_MODELS = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding")
"""Attributes of linears and convolutions that models read."""


class InputTransform(nn.Module):
    """x [..., C], or [B, C, H, W], to (x / s) G of the same shape.

    Buffers (all saved, each absent where it has no part):
        inverse_factors: [C] float32, 1 / s.
        signs: [b] float32, +-1: the first block is diag(signs) H, H being Sylvester's matrix. Instead of `first`, which
            takes b times as many bytes.
        first, second: [b, b] float32, orthogonal, for every b channels.
        permutation: [C] int64: channel j of the result is channel permutation[j].
    """

    inverse_factors: Tensor | None
    signs: Tensor | None
    first: Tensor | None
    second: Tensor | None
    permutation: Tensor | None
    sylvester: Tensor

    def __init__(
        self,
        width: int,
        factors: Tensor | None = None,
        blocks: Blocks | None = None,
        *,
        axis: int = -1,
        randomized: bool = False,
    ) -> None:
        """Takes s [C] float, positive, and G by its parts; `randomized`: G's first block is diag(+-1) H.

        Raises:
            ValueError: a part does not fit the width, or is not what it should be.
        """
        super().__init__()
        self.width, self.axis = width, axis
        self._put("inverse_factors", None if factors is None else 1.0 / factors.double())
        self._put("signs", blocks.first[:, 0].sign() if blocks and randomized else None)
        self._put("first", blocks.first if blocks and not randomized else None)
        self._put("second", blocks.second if blocks else None)
        self.register_buffer("permutation", None if blocks is None else blocks.permutation)
        self._keep_sylvester()
        self._check(blocks)

    @classmethod
    def empty(cls, form: TransformForm) -> InputTransform:
        """One of that form without values, on the meta device."""
        made = cls(form.width, axis=form.axis)
        shapes: dict[str, tuple[int, ...]] = {"signs": (form.signs,)}
        shapes |= {"first": (form.first,) * 2, "second": (form.second,) * 2}
        shapes |= {"inverse_factors": (form.width * form.factors,), "permutation": (form.width * form.permutation,)}
        for name, shape in shapes.items():
            dtype = torch.int64 if name == "permutation" else torch.float32
            made.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta") if all(shape) else None)
        made._keep_sylvester()
        return made

    @property
    def form(self) -> TransformForm:
        """What makes an empty one like it."""
        size = {name: 0 if part is None else len(part) for name, part in self.named_parts()}
        return TransformForm(
            width=self.width,
            axis=self.axis,
            factors=self.inverse_factors is not None,
            signs=size["signs"],
            first=size["first"],
            second=size["second"],
            permutation=self.permutation is not None,
        )

    @property
    def block(self) -> int:
        """Channels that are rotated together; 0 where none are."""
        return max(self.form.signs, self.form.first)

    @property
    def macs(self) -> int:
        """Multiply-adds for one token or pixel, counted as matrix products."""
        form = self.form
        return self.width * (form.factors + self.block + form.second)

    def named_parts(self) -> list[tuple[str, Tensor | None]]:
        """(name, values) of what rotates."""
        return [("signs", self.signs), ("first", self.first), ("second", self.second)]

    def forward(self, x: Tensor) -> Tensor:
        """(x / s) G."""
        if self.inverse_factors is not None:
            x = x * _along(self.inverse_factors, x, self.axis).to(x.dtype)
        x = self._rotated(x, self._first())
        if self.permutation is not None:
            x = x.index_select(self.axis, self.permutation)
        return self._rotated(x, self.second)

    def on_weight(self, weight: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
        """The weight [out, C, ...] that takes the transform back, (W s) G: of its dtype, computed in `precision`."""
        wide = weight.detach().to(precision).transpose(1, -1)
        if self.inverse_factors is not None:
            wide = wide / self.inverse_factors.to(precision)
        return self._turned(wide).transpose(1, -1).to(weight.dtype).contiguous()

    def off_weight(self, weight: Tensor) -> Tensor:
        """The weight for inputs that are not transformed any more: undoes `on_weight`, but for rounding."""
        wide, first = weight.detach().double().transpose(1, -1), self._first()
        if first is not None:
            back = None if self.permutation is None else self.permutation.argsort()
            if self.second is not None:
                wide = rotate(wide, self.second.double().T)
            wide = wide if back is None else wide.index_select(-1, back)
            wide = rotate(wide, first.double().T)
        if self.inverse_factors is not None:
            wide = wide * self.inverse_factors.double()
        return wide.transpose(1, -1).to(weight.dtype).contiguous()

    def on_output(self, values: Tensor) -> Tensor:
        """What a producer's weight [C, ...] or bias [C] becomes if its output is to come transformed: as on_weight."""
        wide = values.detach().double().transpose(0, -1)
        if self.inverse_factors is not None:
            wide = wide * self.inverse_factors.double()
        return self._turned(wide).transpose(0, -1).to(values.dtype).contiguous()

    def resized(self, width: int) -> InputTransform:
        """The same block on another number of channels.

        Raises:
            ValueError: there is more to it than one block.
        """
        first = self._first()
        if first is None or self.inverse_factors is not None or self.permutation is not None or self.second is not None:
            raise ValueError(f"a change of {self.width} channels cannot be one of {width}: it is no rotation by blocks")
        return InputTransform(width, blocks=Blocks(first), axis=self.axis, randomized=self.signs is not None)

    def _turned(self, wide: Tensor) -> Tensor:
        """x G, of x's shape [..., C] and dtype."""
        first, second = self._first(), self.second
        if first is None:
            return wide
        blocks = Blocks(first.to(wide.dtype), self.permutation, None if second is None else second.to(wide.dtype))
        return blocks.apply(wide)

    def _rotated(self, x: Tensor, block: Tensor | None) -> Tensor:
        if block is None:
            return x
        block, size = block.to(x.dtype), block.shape[0]
        if self.axis == -1:
            return (x.reshape(*x.shape[:-1], -1, size) @ block).reshape(x.shape)
        rotated = torch.matmul(block.transpose(0, 1), x.reshape(x.shape[0], -1, size, x.shape[2] * x.shape[3]))
        return rotated.reshape(x.shape)

    def _first(self) -> Tensor | None:
        return self.first if self.signs is None else self.signs[:, None] * self.sylvester

    def _put(self, name: str, values: Tensor | None) -> None:
        self.register_buffer(name, None if values is None else values.detach().float().contiguous())

    def _keep_sylvester(self) -> None:
        """Has H at hand, which is known and not saved."""
        size = 1 if self.signs is None else len(self.signs)
        self.register_buffer("sylvester", hadamard(size), persistent=False)

    def _check(self, blocks: Blocks | None) -> None:
        factors, permutation = self.inverse_factors, self.permutation
        if factors is not None and (factors.shape != (self.width,) or not bool((factors > 0).all())):
            raise ValueError(f"smoothing {self.width} channels takes as many positive factors")
        if factors is not None and not bool(torch.isfinite(factors).all()):
            raise ValueError("smoothing factors must be finite, and so their inverses")
        if permutation is not None and not torch.equal(permutation.sort().values, torch.arange(self.width)):
            raise ValueError(f"no permutation of {self.width} channels")
        for name, part in self.named_parts():
            if part is not None and self.width % len(part):
                raise ValueError(f"{name}: blocks of {len(part)} channels do not divide {self.width}")
        first = self._first()
        if blocks is not None and first is not None and not torch.allclose(first, blocks.first, atol=1e-6):
            raise ValueError("the first block is no Hadamard matrix with random signs")


class Transformed(nn.Module):
    """A layer behind an input transform; stands where the float layer stood.

    Layers that are fed the same tensor share one transform. The first of them, which `leads`, saves it. Each computes
    it: backends that merge equal operations compute it once (OpenVINO does, measured).

    Attributes:
        transform: changes the input.
        inner: the layer, with the changed weight; quantized like any other, by the name "<name>.inner".
    """

    transform: InputTransform
    inner: nn.Module

    def __init__(self, inner: nn.Module, transform: InputTransform, *, leads: bool = True) -> None:
        super().__init__()
        for name in _READ_BY_MODELS:
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))
        if leads:
            self.transform = transform
        else:
            self.__dict__["transform"] = transform  # not registered: it is saved and counted where it leads
        self.inner = inner

    @property
    def leads(self) -> bool:
        """Whether the transform is saved with this layer."""
        return "transform" in self._modules

    def lead(self) -> None:
        """Saves the transform with this layer from now on."""
        self.transform = self.__dict__.pop("transform", None) or self.transform

    @property
    def weight(self) -> Tensor:
        """The changed weight; some models read its dtype."""
        return self.inner.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.inner.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        output: Tensor = self.inner(self.transform(x))
        return output


def axis_of(layer: FloatLayer) -> int:
    """Where the channels of a layer's input are."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values [C] shaped so that they multiply the channels of x."""
    return values if axis == -1 else values.view(-1, *[1] * (x.ndim - 2))
