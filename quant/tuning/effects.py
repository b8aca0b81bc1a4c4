"""What each format of each layer does to finished pictures: squared relative errors of the final latents, that add
up.

Rounding one layer puts an error d_k into its output at step k, which moves the denoiser's output by J_k d_k and,
through all steps after it, the final latents by A_k J_k d_k: together by sum_k A_k J_k d_k. A weight's error is the
same at all steps, so that its effects add up with their signs, and not as squares (bench/LOG.md: sums over calls
ranked layers rightly and told their effects wrongly). For random normal v, (v^T sum_k A_k J_k d_k)^2 has the mean
that is looked for, and what a backward pass of A_k^T v leaves in each weight's gradient, accumulated over the steps
of one picture, gives v^T A_k J_k d_k of *every* width of *every* layer as a product with its rounding error: all
layers and formats cost a few pictures drawn with gradients together. A_k is taken as a number, measured
(pipelines.influence). Errors of inputs and of tables differ from call to call; what they do is the product of the
layer's error and the gradient at its output.

Knows modules and calls, not how pictures come about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.clock import COND, UNCOND, Moment, MomentHolder
from quant.grid import from_integers
from quant.layers import FloatLayer, Quantized, bind
from quant.slots import slots_of

Disturbance = Callable[[Tensor, Tensor], Tensor]
"""What a format does to a layer: its input and output to the error of its output, of the output's shape."""


@dataclass(frozen=True)
class Rounded:
    """A layer's weight at one width: integers [out, ...] int8, and scales [out] of each part of the input channels."""

    integers: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    @property
    def weight(self) -> Tensor:
        """What the weight would be, float32 [out, in, ...]."""
        pairs = zip(self.integers, self.scales, strict=True)
        return torch.cat([from_integers(integers, scales) for integers, scales in pairs], dim=1)

    def error(self, weight: Tensor) -> float:
        """Squared error of all of the weight together."""
        return float((self.weight - weight.detach()).double().square().sum())

    def product(self, gradient: Tensor) -> Tensor:
        """[] inner product of a gradient, shaped as the weight, with what the weight would be."""
        pieces = torch.split(gradient, [part.shape[1] for part in self.integers], dim=1)
        sums = [
            ((piece * part).flatten(1).sum(1) * scale).sum()
            for piece, part, scale in zip(pieces, self.integers, self.scales, strict=True)
        ]
        return torch.stack(sums).sum()


@dataclass(frozen=True)
class Subject:
    """What is judged.

    Attributes:
        module: the float module.
        layers: by dotted name; those with weights to round.
        widths: each layer's weight at each number of bits.
        inputs: name of a way to round inputs to the layers that do so, by name. Their weights are nearly exact.
        outputs: name of a way to store what layers put out to the layers' names and what it does to them.
        schedule: timesteps by slot.
    """

    module: nn.Module
    layers: Mapping[str, FloatLayer]
    widths: Mapping[str, Mapping[int, Rounded]]
    inputs: Mapping[str, Mapping[str, Quantized]]
    outputs: Mapping[str, Mapping[str, Disturbance]]
    schedule: Sequence[float]


@dataclass(frozen=True)
class Direction:
    """What one picture is asked about.

    Attributes:
        latents: v, of the latents' shape with one row.
        influence: A_k by step, as a number.
        guidance: the guidance scale where both branches run, else None: the prediction is g cond + (1 - g) uncond.
        size: squared norm of the final latents.
    """

    latents: Tensor
    influence: Sequence[float]
    guidance: float | None
    size: float


@dataclass
class Effects:
    """Sums over pictures of squared relative errors; see `mean`.

    Attributes:
        weights: by layer and bits.
        inputs: by layer and way; tables by storage under `tables`.
    """

    pictures: int = 0
    weights: dict[str, dict[int, float]] = field(default_factory=dict)
    inputs: dict[str, dict[str, float]] = field(default_factory=dict)
    tables: dict[str, float] = field(default_factory=dict)


class Meter:
    """Answers the calls of one picture after another by the float module, and adds up what formats would do to it."""

    def __init__(self, subject: Subject) -> None:
        self.effects = Effects(
            0,
            {name: dict.fromkeys(widths, 0.0) for name, widths in subject.widths.items()},
            {name: {way: 0.0 for way, own in subject.inputs.items() if name in own} for name in subject.layers},
            dict.fromkeys(subject.outputs, 0.0),
        )
        self._subject = subject
        self._holder = MomentHolder()
        self._slots = {time: slot for slot, time in enumerate(subject.schedule)}
        self._gradients: dict[str, Tensor] = {}
        self._moved: dict[tuple[str, str], float] = {}
        for layers in subject.inputs.values():
            for layer in layers.values():
                bind(layer, self._holder)

    @contextmanager
    def picture(self, direction: Direction) -> Iterator[Callable[[Call], Tensor]]:
        """Within it the given function answers all calls of one picture."""
        self._gradients, self._moved = {}, {}
        weights = [layer.weight for layer in self._subject.layers.values()]
        wanted = [weight.requires_grad for weight in weights]
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield lambda call: self._answer(call, direction)
        finally:
            for weight, before in zip(weights, wanted, strict=True):
                weight.requires_grad_(before)
        self._add(direction.size)

    def _answer(self, call: Call, direction: Direction) -> Tensor:
        slot = slots_of(call, self._slots)
        self._holder.now = Moment(slot, call.clock.branch, slot, torch.ones_like(slot, dtype=torch.bool))
        with torch.inference_mode(False), torch.enable_grad():
            leaves: dict[str, Tensor] = {}
            errors: dict[tuple[str, str], Tensor] = {}
            with self._disturbed(leaves, errors):
                output = call_module(self._subject.module, call)
            self._backward(output, _spread(direction, call, output), leaves, errors)
        return output.detach()

    def _backward(
        self,
        output: Tensor,
        direction: Tensor,
        leaves: Mapping[str, Tensor],
        errors: Mapping[tuple[str, str], Tensor],
    ) -> None:
        layers = self._subject.layers
        if not output.requires_grad:
            return
        wanted = [*(layer.weight for layer in layers.values()), *leaves.values()]
        slopes = torch.autograd.grad(output, wanted, direction, allow_unused=True)
        for name, slope in zip(layers, slopes, strict=False):
            if slope is not None:
                self._gradients[name] = self._gradients[name] + slope if name in self._gradients else slope
        at = dict(zip(leaves, slopes[len(layers) :], strict=True))
        for (name, way), error in errors.items():
            slope = at[name]
            if slope is not None:
                moved = float((slope.double() * error.double()).sum())
                self._moved[name, way] = self._moved.get((name, way), 0.0) + moved

    def _add(self, size: float) -> None:
        """Counts what the picture's calls left."""
        effects, self.effects.pictures = self.effects, self.effects.pictures + 1
        with torch.no_grad():
            for name, gradient in self._gradients.items():
                exact = (gradient * self._subject.layers[name].weight).sum()
                for bits, rounded in self._subject.widths.get(name, {}).items():
                    effects.weights[name][bits] += float(rounded.product(gradient) - exact) ** 2 / size
        for (name, way), moved in self._moved.items():
            if way in effects.tables:
                effects.tables[way] += moved**2 / size
            else:
                effects.inputs[name][way] += moved**2 / size

    @contextmanager
    def _disturbed(self, leaves: dict[str, Tensor], errors: dict[tuple[str, str], Tensor]) -> Iterator[None]:
        """Adds a zero to each output of interest that gradients are taken of, and keeps what formats would do to it."""
        handles = []
        try:
            for name, ways in self._ways().items():
                layer = self._subject.module.get_submodule(name)
                handles.append(layer.register_forward_hook(_hook(name, ways, leaves, errors)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _ways(self) -> dict[str, dict[str, Disturbance]]:
        """What may happen to each layer's output, by layer and name of the way."""
        found: dict[str, dict[str, Disturbance]] = {}
        for way, layers in self._subject.inputs.items():
            for name, layer in layers.items():
                found.setdefault(name, {})[way] = _of_layer(layer)
        for way, outputs in self._subject.outputs.items():
            for name, disturbance in outputs.items():
                found.setdefault(name, {})[way] = self._of_table(disturbance)
        return found

    def _of_table(self, disturbance: Disturbance) -> Disturbance:
        def error(x: Tensor, output: Tensor) -> Tensor:
            return disturbance(self._holder.now.slot, output)

        return error


def mean(effects: Effects) -> Effects:
    """The same, for one picture."""
    count = max(1, effects.pictures)
    return Effects(
        effects.pictures,
        {name: {bits: value / count for bits, value in own.items()} for name, own in effects.weights.items()},
        {name: {way: value / count for way, value in own.items()} for name, own in effects.inputs.items()},
        {way: value / count for way, value in effects.tables.items()},
    )


def of_rows(errors: Tensor) -> Disturbance:
    """What a table's errors [slots, width] do to a layer that puts out a row for each row of the call: by slot."""

    def error(slots: Tensor, output: Tensor) -> Tensor:
        rows = errors[slots]
        shape = (len(slots), *[1] * (output.ndim - 2), rows.shape[1])
        return rows.view(shape).expand_as(output)

    return error


def _of_layer(layer: nn.Module) -> Disturbance:
    def error(x: Tensor, output: Tensor) -> Tensor:
        rounded: Tensor = layer(x)
        return rounded - output

    return error


def _hook(
    name: str,
    ways: Mapping[str, Disturbance],
    leaves: dict[str, Tensor],
    errors: dict[tuple[str, str], Tensor],
) -> Callable[..., Tensor]:
    """A layer that runs several times in one call is judged by its last, as far as inputs go."""

    def disturb(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with torch.no_grad():
            for way, disturbance in ways.items():
                errors[name, way] = disturbance(arguments[0].detach(), output.detach())
        leaves[name] = torch.zeros_like(output, requires_grad=True)
        return output + leaves[name]

    return disturb


def _spread(direction: Direction, call: Call, output: Tensor) -> Tensor:
    """A_k^T v for each row of a call, of the output's shape; a part of it that moves no latents, such as a variance in
    further channels, is left out.
    """
    wanted, v = torch.zeros_like(output), direction.latents.to(output)
    for row, (step, branch) in enumerate(zip(call.clock.step.tolist(), call.clock.branch.tolist(), strict=True)):
        share = 1.0
        if direction.guidance is not None:
            share = {COND: direction.guidance, UNCOND: 1 - direction.guidance}.get(branch, 1.0)
        wanted[row, : v.shape[1]] = share * direction.influence[step] * v[0]
    return wanted
