"""How one unit learns: the rounding of its weights, or the scales of its inputs. Knows a unit and rows to learn on.

Loss of a unit on some rows, p being 2 for weights and 2.4 for scales (Q-Diffusion's code):

    sum over the unit's outputs of: mean over rows and places of sum over dimension 1 of |y - y^|^p

While weights learn it is divided by the loss of weights rounded to nearest, which the published code does not do. The
published weight of the regularizer, 0.01, suits losses about 1; divided, it suits features of any size. (On
shapes-unet, where losses are 0.1 to 5, this lowers the final loss by 1%.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant.errors import QuantError
from quant.grid import integer_range
from quant.layers import FloatLayer, Quantized, QuantizedLayer, SplitLayer, parts_of
from quant.recipe_parts import Rounding
from quant.rounding import Grid, SoftRounding
from quant.stacks import Stack

Compute = Callable[[Tensor], Tensor]
"""A layer's forward."""

SCALE_POWER = 2.4
SCALE_RATE = 0.02
"""Adam's first rate for scales, relative to them, falling to 0 along a cosine. Q-Diffusion's 4e-4 is absolute, which is
this much of a scale of 0.02, that of u8 over a range of 5; relative, it suits layers of any range."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A unit that is to learn.

    Attributes:
        name: the unit's, for messages and for its random numbers.
        part: the module that is the unit, in the float model.
        floats: its float layers by name.
        quantized: their quantized forms.
        stacks: what it is fed and should put out.
        computing: a context within which the float layers compute something else, by name.
        seed: of the choice of rows.
    """

    name: str
    part: nn.Module
    floats: Mapping[str, FloatLayer]
    quantized: Mapping[str, Quantized]
    stacks: Sequence[Stack]
    computing: Callable[[Mapping[str, Compute]], AbstractContextManager[None]]
    seed: int

    def learn_rounding(self, rounding: Rounding) -> float:
        """Sets the layers' integers to the learned ones, unless nearest are better; the loss on all rows.

        Raises:
            QuantError: a weight or the loss is not finite.
        """
        parts = [part for layer in self.quantized.values() for part in parts_of(layer)]
        nearest, before = [part.integers for part in parts], self.loss(rounding.batch)
        try:
            soft = SoftRounding(self._grids(), rounding)
        except ValueError as error:
            raise QuantError(f"{self.name}: {error}") from error
        if before == 0.0:
            return before
        self._soften(soft, rounding, before)
        after = self._loss_with(parts, soft.integers(), rounding.batch)
        if after > before:
            for part, integers in zip(parts, nearest, strict=True):
                part.integers = integers
        return min(before, after)

    def _soften(self, soft: SoftRounding, rounding: Rounding, before: float) -> None:
        weights = iter(soft.weights)
        own = {name: _with_weights(layer, [next(weights) for _ in parts_of(layer)]) for name, layer in self._layers()}
        with self.computing(own):
            for iteration, (stack, rows) in enumerate(self._batches(rounding.iterations, rounding.batch), start=1):
                loss = self._loss(stack, rows, 2.0)
                if loss.requires_grad:
                    (loss / before).backward()  # type: ignore[no-untyped-call]
                soft.step(iteration)

    def _loss_with(self, parts: Sequence[QuantizedLayer], integers: Sequence[Tensor], batch: int) -> float:
        for part, own in zip(parts, integers, strict=True):
            part.integers = own
        return self.loss(batch)

    def learn_scales(self, rounding: Rounding) -> float:
        """Sets the layers' input scales to the learned ones, unless the present ones are better; the loss on all rows.

        Raises:
            QuantError: the loss is not finite.
        """
        parts = [part for layer in self.quantized.values() for part in parts_of(layer) if part.input_scale is not None]
        scales = [part.input_scale for part in parts if part.input_scale is not None]
        before = self.loss(rounding.batch)
        if not parts:
            return before
        factors = torch.ones(len(parts), device=scales[0].device).requires_grad_()
        optimizer = torch.optim.Adam([factors], lr=SCALE_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounding.activation_iterations)
        own = {name: _with_scales(layer, parts, factors) for name, layer in self._layers()}
        with self.computing(own):
            for stack, rows in self._batches(rounding.activation_iterations, rounding.batch):
                optimizer.zero_grad()
                loss = self._loss(stack, rows, SCALE_POWER)
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        for part, scale, factor in zip(parts, scales, factors.detach(), strict=True):
            part.input_scale = scale * factor
        after = self.loss(rounding.batch) if bool((factors > 0).all()) else float("inf")
        if after > before:
            for part, scale in zip(parts, scales, strict=True):
                part.input_scale = scale
        return min(before, after)

    def loss(self, batch: int) -> float:
        """The loss on all rows, p = 2, with the layers as they are.

        Raises:
            QuantError: it is not finite.
        """
        total, rows = 0.0, sum(stack.rows for stack in self.stacks)
        with torch.no_grad(), self.computing(dict(self._layers())):
            for stack in self.stacks:
                for index in torch.split(torch.arange(stack.rows), batch):
                    total += float(self._loss(stack, index, 2.0)) * len(index) / rows
        if not total < float("inf"):
            raise QuantError(f"{self.name}: its loss is not finite; its inputs or weights hold NaN or infinity")
        return total

    def _layers(self) -> Iterator[tuple[str, Quantized]]:
        return iter(self.quantized.items())

    def _grids(self) -> list[Grid]:
        grids = []
        for name, layer in self._layers():
            parts = parts_of(layer)
            weights = torch.split(self.floats[name].weight, [part.integers.shape[1] for part in parts], dim=1)
            grids += [Grid(weight, part.scales, weight_bits(part)) for weight, part in zip(weights, parts, strict=True)]
        return grids

    def _batches(self, count: int, size: int) -> Iterator[tuple[Stack, Tensor]]:
        """`count` times a stack, drawn by its rows, and `size` different rows of it."""
        digest = hashlib.sha256(f"{self.seed} {self.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        weights = torch.tensor([float(stack.rows) for stack in self.stacks])
        for _ in range(count):
            stack = self.stacks[int(torch.multinomial(weights, 1, generator=generator))]
            yield stack, torch.randperm(stack.rows, generator=generator)[:size]

    def _loss(self, stack: Stack, rows: Tensor, power: float) -> Tensor:
        arguments, keywords, targets = stack.take(rows)
        outputs = stack.compared(self.part(*arguments, **keywords))
        losses = [_distance(output, target, power) for output, target in zip(outputs, targets, strict=True)]
        return torch.stack(losses).sum()


def _distance(output: Tensor, target: Tensor, power: float) -> Tensor:
    missed = output.float() - target
    error = missed.square() if power == 2.0 else missed.abs().pow(power)
    return error.sum(1).mean() if error.ndim > 1 else error.mean()


def weight_bits(part: QuantizedLayer) -> int:
    """The width of a layer's integers: the least that holds them, as range searches leave no grid's ends unused."""
    low, high = (int(end) for end in part.integers.aminmax())
    return next(bits for bits in range(2, 9) if integer_range(bits)[0] <= low and high <= integer_range(bits)[1])


def _with_weights(layer: Quantized, weights: Sequence[Tensor]) -> Compute:
    """The layer on float inputs with other weights. The parts of a split layer are one again: their outputs add up."""
    first = parts_of(layer)[0]
    if len(weights) == 1:
        return lambda x: first.operate(x, weights[0], first.bias)
    return lambda x: first.operate(x, torch.cat(list(weights), dim=1), first.bias)


def _with_scales(layer: Quantized, parts: Sequence[QuantizedLayer], factors: Tensor) -> Compute:
    """The layer with its input scales times factors that gradients reach."""
    places = {id(part): place for place, part in enumerate(parts)}
    weights = {id(part): part.weight for part in parts_of(layer)}

    def compute(part: QuantizedLayer, x: Tensor) -> Tensor:
        if part.input_scale is None or part.input_zero_point is None:
            return part.operate(x, weights[id(part)], part.bias)
        scale, zero_point = part.input_scale * factors[places[id(part)]], int(part.input_zero_point)
        rounded = _Rounded.apply(x, scale, zero_point, part.activation_high)  # type: ignore[no-untyped-call]
        return part.operate(rounded, weights[id(part)], part.bias)

    if isinstance(layer, QuantizedLayer):
        return lambda x: compute(layer, x)
    if not isinstance(layer, SplitLayer):
        raise TypeError(f"a {type(layer).__name__} has no input scales that could learn")

    def split(x: Tensor) -> Tensor:
        pieces = zip(parts_of(layer), torch.split(x, list(layer.sizes), layer.dim), strict=True)
        first, *others = (compute(part, piece) for part, piece in pieces)
        return sum(others, first)

    return split


class _Rounded(torch.autograd.Function):
    """An input on its grid; gradients pass straight through the rounding (LSQ, Esser et al., ICLR 2020)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, high: int) -> Tensor:
        """The rounded input."""
        ctx.save_for_backward(x, scale)
        ctx.ends = (-zero_point, high - zero_point)
        return torch.fake_quantize_per_tensor_affine(x, float(scale), zero_point, 0, high)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Slopes of the input, where it is not clipped, and of the scale."""
        x, scale = ctx.saved_tensors
        steps = x / scale
        places = steps.round()
        inside = (places >= ctx.ends[0]) & (places <= ctx.ends[1])
        by_scale = torch.where(inside, places - steps, places.clamp(*ctx.ends))
        return slopes[0] * inside, (slopes[0] * by_scale).sum(), None, None
