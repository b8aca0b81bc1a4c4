"""AdaRound: learns for each weight whether it is rounded down or up (Nagel et al., ICML 2020). Knows no modules.

With w a weight, s its channel's scale, [low, high] the integers that it may become:

    w^ = s clip(floor(w / s) + h(V), low, high)        h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)
    loss = what the layers' outputs lose + lambda sum(1 - |2 h(V) - 1|^beta)

V starts where w^ = w. beta falls from 20 to 2 in a line once a warm-up without the sum is over, and drives every h(V)
to 0 or 1. In the end w / s is rounded up where V >= 0. Constants and schedule as in TFMQ-DM's and BRECQ's code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.grid import along_first, integer_range
from quant.recipe_parts import Rounding

ZETA, GAMMA = 1.1, -0.1
"""Ends of the stretched sigmoid before it is clipped."""
_CACHED = 1 << 16
"""Numbers of a block."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V), any shape."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(rest: Tensor) -> Tensor:
    """V with h(V) = rest, for rests in 0..1."""
    return -torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1)


def regularizer(h: Tensor, beta: float) -> Tensor:
    """sum(1 - |2h - 1|^beta): 0 where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def beta_at(iteration: int, rounding: Rounding) -> float | None:
    """beta at an iteration counted from 1; None during the warm-up, when nothing is regularized."""
    warm = rounding.warmup * rounding.iterations
    if iteration < warm:
        return None
    start, end = rounding.beta
    left = 1 - (iteration - warm) / max(rounding.iterations - warm, 1e-9)
    return end + (start - end) * max(0.0, left)


@dataclass(frozen=True, slots=True)
class Grid:
    """A weight to be rounded: [out, ...] float32, a scale for each output channel [out], the integers' width."""

    weight: Tensor
    scales: Tensor
    bits: int


@dataclass(frozen=True, slots=True)
class _Block:
    """A piece of all flat tensors, small enough to stay in a core's cache while it is worked on.

    Attributes:
        v: V.
        base, gain: w^ = base + gain h(V), in units of w.
        soft: w^.
        slope: of the loss by w^, and then by V.
    """

    v: Tensor
    base: Tensor
    gain: Tensor
    soft: Tensor
    slope: Tensor

    def soften(self) -> None:
        """Computes w^ from V."""
        torch.addcmul(self.base, self.gain, rectified_sigmoid(self.v), out=self.soft)

    def chain(self, beta: float | None, strength: float) -> None:
        """Turns the slope by w^ into the slope by V, and adds that of strength * regularizer where beta is given."""
        sigmoid = torch.sigmoid(self.v)
        h = sigmoid * (ZETA - GAMMA) + GAMMA
        inside = (h > 0) & (h < 1)
        self.slope.mul_(self.gain)
        if beta is not None:
            from_middle = h.clamp_(0, 1).mul_(2).sub_(1)
            self.slope.addcmul_(from_middle.abs().pow_(beta - 1), from_middle.sign(), value=-2 * beta * strength)
        self.slope.mul_(sigmoid.mul_(1 - sigmoid).mul_(inside).mul_(ZETA - GAMMA))


class SoftRounding:
    """The roundings of some weights, learned together. One flat V, and gradients by hand: nothing is recorded for them.

    `weights` are leaves to compute with; after `backward()` through them, `step` moves V and refreshes them.

    Raises:
        ValueError: a weight or a scale is not finite, or a scale is not positive.
    """

    def __init__(self, grids: Sequence[Grid], rounding: Rounding) -> None:
        self._shapes, self._rounding = [grid.weight.shape for grid in grids], rounding
        places, scale, low, high = (torch.cat(parts) for parts in zip(*map(_flat, grids), strict=True))
        floor = places.floor()
        self._v = inverse_rectified_sigmoid(places - floor).requires_grad_()
        # clip(floor + h) is floor + h, or the end of the range whatever h is: then V is not moved by the outputs
        self._free = (floor >= low) & (floor < high)
        self._floor = torch.minimum(torch.maximum(floor, low), high)
        flat = (self._floor * scale, scale * self._free, torch.empty_like(scale), torch.zeros_like(scale))
        pieces = zip(*(torch.split(tensor, _CACHED) for tensor in (self._v.detach(), *flat)), strict=True)
        self._blocks = [_Block(*piece) for piece in pieces]
        self._slope = self._v.grad = flat[-1]
        self._optimizer = torch.optim.Adam([self._v], lr=rounding.learning_rate, fused=True)
        self.weights = self._leaves(flat[-2])
        self._soften()

    def _leaves(self, soft: Tensor) -> list[Tensor]:
        """The weights, each a leaf that lies in the flat tensor, as its gradient does in another."""
        leaves = []
        for own, slope in zip(self._shaped(soft), self._shaped(self._slope), strict=True):
            leaf = own.detach().requires_grad_()
            leaf.grad = slope
            leaves.append(leaf)
        return leaves

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, [math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _soften(self) -> None:
        with torch.no_grad():
            for block in self._blocks:
                block.soften()

    def step(self, iteration: int) -> None:
        """Moves V by the gradients that the weights have got and by the regularizer's; `iteration` counts from 1."""
        beta = beta_at(iteration, self._rounding)
        with torch.no_grad():
            for block in self._blocks:
                block.chain(beta, self._rounding.regularizer)
            self._optimizer.step()
            self._slope.zero_()
        self._soften()

    def integers(self) -> list[Tensor]:
        """The rounded weights as int8 [out, ...], each as far up or down as V says by now."""
        up = (self._v.detach() >= 0) & self._free
        return [part.clone() for part in self._shaped((self._floor + up).to(torch.int8))]


def _flat(grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w / s, s, and the smallest and largest integer, each for every weight in a flat float32 tensor."""
    weight, scales = grid.weight.detach().float(), grid.scales.detach().float()
    if not bool(torch.isfinite(weight).all()) or not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise ValueError("the weight holds NaN or infinity, or its scales are not positive")
    along = along_first(scales, weight).expand_as(weight)
    low, high = integer_range(grid.bits)
    places = (weight / along).flatten()
    return places, along.flatten(), torch.full_like(places, low), torch.full_like(places, high)
