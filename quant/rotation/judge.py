"""What rounding costs the outputs of layers that share an input transform, on kept inputs. Knows tensors, no modules.

It is a quick guide for choices, not what quantizing does: weights are rounded to nearest from their largest (clipping
is not searched), and a convolution counts as one linear for each place of its kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.grid import Affine, affine_over, from_integers, to_integers, weight_scales
from quant.recipe import FLOAT_BITS, Activations, Scheme
from quant.rotation.channels import Channels
from quant.rotation.transform import InputTransform
from quant.tokens import round_alike, round_between

MOST_ROWS = 512
"""Samples of one input that are judged on."""
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the range that are tried where a recipe clips inputs."""


@dataclass(frozen=True, slots=True)
class Fed:
    """One tensor that layers read, and they: samples [M, C] with the slot of each [M], and weights with schemes."""

    rows: Tensor
    slots: Tensor
    readers: tuple[tuple[Tensor, Scheme], ...]

    @classmethod
    def of(cls, channels: Channels, readers: Sequence[tuple[Tensor, Scheme]]) -> Fed:
        """At most MOST_ROWS of what a layer's channels were fed, evenly taken from all slots."""
        slots = torch.cat([torch.full((len(rows),), slot) for slot, rows in sorted(channels.samples.items())])
        step = max(1, -(-len(slots) // MOST_ROWS))
        return cls(channels.rows[::step], slots[::step], tuple(readers))


class Judge:
    """Squared relative error of outputs, summed over layers, with any transform of their inputs."""

    def __init__(self, fed: Sequence[Fed]) -> None:
        self._fed = fed
        self._truths = [[one.rows @ flat(weight).T for weight, _ in one.readers] for one in fed]

    def error(self, transform: InputTransform | None) -> float:
        """By a transform along the last axis; None: as inputs are."""
        return sum(
            lost / max(power, 1e-30)
            for one, truths in zip(self._fed, self._truths, strict=True)
            for lost, power in _losses(one, truths, transform)
        )


def flat(weight: Tensor) -> Tensor:
    """A weight [out, C, ...] as [out * ..., C] float32: a linear for each place of a kernel."""
    return weight.detach().float().movedim(1, -1).flatten(0, -2)


def _losses(fed: Fed, truths: Sequence[Tensor], transform: InputTransform | None) -> Iterator[tuple[float, float]]:
    """(squared error, squared output) of each reader."""
    x = fed.rows if transform is None else transform(fed.rows)
    rounded: dict[Activations, Tensor] = {}
    for (weight, scheme), truth in zip(fed.readers, truths, strict=True):
        if scheme.activations not in rounded:
            rounded[scheme.activations] = _rounded(x, fed.slots, scheme.activations)
        changed = weight if transform is None else transform.on_weight(weight, torch.float32)
        scales = weight_scales(changed, scheme.weights.bits, "max")
        integers = to_integers(changed, scales, scheme.weights.bits)
        output = rounded[scheme.activations] @ flat(from_integers(integers, scales)).T
        yield float((output - truth).double().square().sum()), float(truth.double().square().sum())


def _rounded(x: Tensor, slots: Tensor, activations: Activations) -> Tensor:
    """x [M, C] on the grids that a scheme has."""
    if activations.bits == FLOAT_BITS:
        return x
    high = (1 << activations.bits) - 1
    if activations.grain == "token":
        return round_between(x, high) if activations.zero_point == "token" else round_alike(x, activations.bits)
    if activations.steps == "shared":
        return _on_one_grid(x, activations)
    whole = torch.empty_like(x)
    for slot in slots.unique():  # type: ignore[no-untyped-call]
        whole[slots == slot] = _on_one_grid(x[slots == slot], activations)
    return whole


def _on_one_grid(x: Tensor, activations: Activations) -> Tensor:
    low, high = (float(end) for end in x.aminmax())
    if low == high == 0.0:
        return x
    clips = CLIPS if activations.range != "minmax" else CLIPS[:1]
    tried = (_on(x, affine_over(low * clip, high * clip, activations.bits)) for clip in clips)
    return min(tried, key=lambda one: float((one - x).square_().sum()))


def _on(x: Tensor, grid: Affine) -> Tensor:
    """As `fake_quantize` but for ties, and several times as fast on one core."""
    integers = (x / grid.scale).round_().add_(grid.zero_point).clamp_(0, grid.high)
    return integers.sub_(grid.zero_point).mul_(grid.scale)
