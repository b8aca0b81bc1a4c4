"""Values that wait to be computed, so that one kernel takes in what stands before and after a product.

A norm waits for its modulation, and for the rounding of what comes of it; the sums of a linear wait for an activation,
a gate and a residual. Models need not know: whatever else is done with such a value, torch computes it first. What is
taken in is computed in float32 and rounded once, where torch rounds after every operation. Must not know layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from quant.kernels.forms import Activation, After, Before


class Overwritten(Exception):
    """A model wrote over what it had normalized before the result was used: it is to be run again without waiting."""


@dataclass(slots=True)
class Switch:
    """Whether values of a module may wait."""

    on: bool = True

    @property
    def closed(self) -> bool:
        """Whether they do now: compilers fuse what they see, and are shown plain operations."""
        return self.on and not torch.compiler.is_compiling()


Multiply = Callable[[After, torch.dtype], Tensor]
"""Computes a product [M, N] with what follows it, in a dtype."""


class Waiting(Tensor):
    """A tensor whose numbers are computed when something asks for them."""

    _made: Tensor | None = None

    @staticmethod
    def __new__(cls: type[Self], shape: torch.Size, dtype: torch.dtype, device: torch.device, *_: object) -> Self:
        """An empty shell of that form."""
        shell: Self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        return shell

    def computed(self) -> Tensor:
        """The numbers, as a plain tensor; computed once."""
        if self._made is None:
            self._made = self.compute()
        return self._made

    @abstractmethod
    def compute(self) -> Tensor:
        """The numbers."""

    def times(self, other: Tensor) -> Tensor | None:
        """This times another; None where kernels do not take it in. So do the next three."""

    def plus(self, other: Tensor) -> Tensor | None:
        """The sum."""

    def activated(self, activation: Activation) -> Tensor | None:
        """An activation of this."""

    def cast(self, dtype: torch.dtype) -> Tensor | None:
        """This in a dtype."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What becomes of a function of torch that is called with one of these."""
        if func in _OF_THE_FORM:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        taken_in = _TAKEN_IN.get(func)
        answer = None if taken_in is None else taken_in(*args, **(kwargs or {}))
        if answer is not None:
            return answer
        return func(*computed(args), **computed(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The same for what does not come by way of Python."""
        return func(*computed(args), **computed(kwargs or {}))


class Normed(Waiting):
    """Rows [B, T, K] normalized, and modulated if they were so since.

    Attributes:
        source: what is normalized.
        before: how, for a kernel.
    """

    def __init__(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        source: Tensor,
        before: Before,
        plainly: Callable[[], Tensor],
        version: int,
    ) -> None:
        """`plainly()` has torch compute the same; `version`: of the source, when it was to be normalized."""
        self.source, self.before, self._plainly, self._read = source, before, plainly, version

    @classmethod
    def of(cls, source: Tensor, before: Before, plainly: Callable[[], Tensor]) -> Normed:
        """A norm of source."""
        return cls(source.shape, source.dtype, source.device, source, before, plainly, source._version)

    def rows(self) -> Tensor:
        """The source, for a kernel.

        Raises:
            Overwritten: it was written to since it was to be normalized.
        """
        if self.source._version != self._read:
            raise Overwritten
        return self.source

    def compute(self) -> Tensor:
        """As torch does."""
        self.rows()
        return self._plainly()

    def times(self, other: Tensor) -> Tensor | None:
        """Modulated."""
        gain = row_each(other, self.shape)
        if gain is None or self.before.gain is not None or self.before.shift is not None:
            return None
        return self._then(lambda: self.computed() * other, other.dtype, replace(self.before, gain=gain))

    def plus(self, other: Tensor) -> Tensor | None:
        """Modulated."""
        shift = row_each(other, self.shape)
        if shift is None or self.before.shift is not None:
            return None
        return self._then(lambda: self.computed() + other, other.dtype, replace(self.before, shift=shift))

    def cast(self, dtype: torch.dtype) -> Tensor | None:
        """The same rows: kernels compute in float32, whatever they are said to be in between."""
        if not dtype.is_floating_point:
            return None
        before, plainly = self.before, lambda: self.computed().to(dtype)
        return Normed(self.shape, dtype, self.device, self.source, before, plainly, self._read)

    def _then(self, plainly: Callable[[], Tensor], other: torch.dtype, before: Before) -> Normed:
        dtype = torch.promote_types(self.dtype, other)
        return Normed(self.shape, dtype, self.device, self.source, before, plainly, self._read)


class Product(Waiting):
    """What a linear makes of rows, [..., N], and what was done with it since."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, multiply: Multiply, after: After
    ) -> None:
        self._multiply, self._after = multiply, after

    def compute(self) -> Tensor:
        """By its kernel."""
        return self._multiply(self._after, self.dtype).view(self.shape)

    def activated(self, activation: Activation) -> Tensor | None:
        """Waits on."""
        if self._made is not None or self._after.activation != "none" or self._after.gate is not None:
            return None
        return Product(self.shape, self.dtype, self.device, self._multiply, replace(self._after, activation=activation))

    def times(self, other: Tensor) -> Tensor | None:
        """Waits on."""
        gate = row_each(other, self.shape)
        if gate is None or self._made is not None or self._after.gate is not None:
            return None
        dtype = torch.promote_types(self.dtype, other.dtype)
        return Product(self.shape, dtype, self.device, self._multiply, replace(self._after, gate=gate))

    def plus(self, other: Tensor) -> Tensor | None:
        """The residual is the last that a kernel takes in, so it runs now."""
        if self._made is not None or other.shape != self.shape or not other.is_floating_point():
            return None
        residual = other.reshape(-1, self.shape[-1]).contiguous()
        dtype = torch.promote_types(self.dtype, other.dtype)
        return self._multiply(replace(self._after, residual=residual), dtype).view(self.shape)


def computed(value: Any) -> Any:
    """A value with everything in it that waits computed."""
    return tree_map_only(Waiting, Waiting.computed, value)


def row_each(values: Tensor, shape: torch.Size) -> Tensor | None:
    """Float factors or summands of rows of a shape [..., K] as [B, K], a row for each of its first dimension; None
    where there are not so many or not so few.
    """
    width = shape[-1]
    if not values.is_floating_point() or values.shape[-1:] != (width,) or (width > 1 and values.stride(-1) != 1):
        return None
    if values.numel() == width and values.ndim <= len(shape):
        return values.reshape(1, width).expand(shape[0], width)
    one_each = len(shape) > 1 and values.shape == (shape[0], *(1 for _ in shape[1:-1]), width)
    return values.flatten(1, -2).squeeze(1) if one_each and len(shape) > 2 else values if one_each else None


def _pair(first: object, second: object, take: Callable[[Waiting, Tensor], Tensor | None]) -> Tensor | None:
    """What the one that waits makes of the other, whichever comes first."""
    waiting, other = (first, second) if isinstance(first, Waiting) else (second, first)
    if not isinstance(waiting, Waiting) or not isinstance(other, Tensor):
        return None
    plain: Tensor = computed(other)
    return take(waiting, plain) if plain.device == waiting.device else None


def _times(first: object, second: object) -> Tensor | None:
    return _pair(first, second, lambda waiting, other: waiting.times(other))


def _plus(first: object, second: object, *, alpha: float = 1) -> Tensor | None:
    return _pair(first, second, lambda waiting, other: waiting.plus(other)) if alpha == 1 else None


def _gelu(x: Waiting, approximate: str = "none") -> Tensor | None:
    return x.activated("gelu_tanh" if approximate == "tanh" else "gelu")


def _silu(x: Waiting, inplace: bool = False) -> Tensor | None:
    return None if inplace else x.activated("silu")


def _dropout(x: Waiting, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    return None if training else x


def _div(x: object, by: object, **how: object) -> Tensor | None:
    """Attention of diffusers divides by its `rescale_output_factor`, which is 1 nearly always."""
    return x if isinstance(x, Waiting) and isinstance(by, int | float) and by == 1 and not how else None


def _to(x: object, dtype: object = None, **how: object) -> Tensor | None:
    return x.cast(dtype) if isinstance(x, Waiting) and isinstance(dtype, torch.dtype) and not how else None


def _type_as(x: object, other: Tensor) -> Tensor | None:
    return x.cast(other.dtype) if isinstance(x, Waiting) and x.device == other.device else None


def _float(x: Waiting, **how: object) -> Tensor | None:
    return None if how else x.cast(torch.float32)


_TAKEN_IN: Final[dict[Any, Callable[..., Tensor | None]]] = {
    Tensor.mul: _times,
    torch.mul: _times,
    Tensor.add: _plus,
    torch.add: _plus,
    Tensor.div: _div,
    torch.div: _div,
    functional.gelu: _gelu,
    functional.silu: _silu,
    functional.dropout: _dropout,
    Tensor.to: _to,
    Tensor.type_as: _type_as,
    Tensor.float: _float,
}

_OF_THE_FORM: Final = frozenset(
    (
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "ndim", "dtype", "device", "_version", "requires_grad", "is_cuda", "layout")
        ),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__),
    )
)
"""What the shell itself can tell."""
