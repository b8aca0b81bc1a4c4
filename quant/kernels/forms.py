"""What surrounds a product: how rows are prepared and rounded before it, what follows it. Must not know how it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import torch
from torch import Tensor

Norm = Literal["none", "layer", "rms"]
Activation = Literal["none", "gelu_tanh", "gelu", "silu"]
Name = TypeVar("Name", bound=str)

NORMS: Final[tuple[Norm, ...]] = ("none", "layer", "rms")
ACTIVATIONS: Final[tuple[Activation, ...]] = ("none", "gelu_tanh", "gelu", "silu")
"""Kernels take the place in these lists."""


@dataclass(frozen=True, eq=False)
class Before:
    """What happens to rows [B, T, K] before they are rounded, in this order.

    Attributes:
        norm: over K, with `eps` and, where there are any, `weight` [K] and `bias` [K].
        gain, shift: [B, K] of the modulation x gain + shift, rows of any distance.
        factors: [K], that channels are multiplied by.
        signs: [b], +-1, of a rotation x blkdiag(diag(signs) H) by blocks of b channels, a power of two of 2 to 128 that
            divides K; H is Sylvester's orthonormal Hadamard matrix.
    """

    norm: Norm = "none"
    eps: float = 1e-5
    weight: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    factors: Tensor | None = None
    signs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class After:
    """What a product's sums [M, N] become: residual + gate * activation((sums + offset) * scales + bias).

    Attributes:
        row_scale: float32 [R], one for every M / R rows; absent for 1.
        offset: int32 [N], what the zero point of the rows takes, see `offset_of`; absent for 0.
        bias: float [N].
        activation: of ACTIVATIONS.
        residual: float [M, N].
        gate: float [G, N], one row for every M / G rows; rows of any distance.
    """

    row_scale: Tensor | None = None
    offset: Tensor | None = None
    bias: Tensor | None = None
    activation: Activation = "none"
    residual: Tensor | None = None
    gate: Tensor | None = None

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, str, Tensor | None, Tensor | None]:
        """Its attributes in order, as operators take them."""
        return self.row_scale, self.offset, self.bias, self.activation, self.residual, self.gate


_LEAST: Final = 1e-30
"""`quant.tokens` has the same least scale."""

NOTHING_BEFORE: Final = Before()
NOTHING_AFTER: Final = After()


def middle(high: int) -> int:
    """o: what is taken off the unsigned integers 0 .. high so that they fit in int8."""
    return (high + 1) // 2


def norm_of(name: str) -> Norm:
    """A norm by name.

    Raises:
        ValueError: there is none.
    """
    return _named(name, NORMS, "norm")


def activation_of(name: str) -> Activation:
    """An activation by name.

    Raises:
        ValueError: there is none.
    """
    return _named(name, ACTIVATIONS, "activation")


def _named(name: str, known: tuple[Name, ...], kind: str) -> Name:
    for one in known:
        if name == one:
            return one
    raise ValueError(f"no {kind} {name!r}; known: {', '.join(known)}")


def dtype_of(arguments: Sequence[object]) -> torch.dtype:
    """The output's dtype, which operators with an `After` take last.

    Raises:
        TypeError: it is none.
    """
    dtype = arguments[-1]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"the last argument is the dtype of the output, not {dtype!r}")
    return dtype


def scales_of(least: Tensor, most: Tensor, zero_point: int, high: int) -> Tensor:
    """Scales at which nothing from `least` to `most` (float32, any shape) is clipped, as `quant.tokens` has them."""
    above, below = _divided(most.clamp(min=0.0), high - zero_point), _divided(-least.clamp(max=0.0), zero_point)
    return torch.maximum(above, below).clamp(min=_LEAST)


def _divided(reach: Tensor, steps: int) -> Tensor:
    """Zero where there are no steps. Divided by a tensor: by a number, torch multiplies with its inverse on GPUs."""
    return reach / torch.full_like(reach, steps) if steps else torch.zeros_like(reach)


def offset_of(weight: Tensor, zero_point: int, high: int) -> Tensor | None:
    """int32 [N]: what the sums over weights [N, ...] lack because rows hold q - o where they stand for q - z.

    sum (q - z) w = sum (q - o) w + (o - z) sum w. None where z is o.
    """
    lack = middle(high) - zero_point
    return None if lack == 0 else (lack * weight.flatten(1).long().sum(1)).int()
