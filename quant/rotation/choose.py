"""Chooses smoothing factors and rotations for layers that share an input, on what they were fed. Changes nothing.

Must not know where a choice is folded, or any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from quant.layers import FloatLayer
from quant.recipe import Recipe, Scheme
from quant.rotation.channels import ChannelStatistics, input_channels
from quant.rotation.greedy import Blocks, greedy
from quant.rotation.hadamard import block_of, hadamard
from quant.rotation.judge import Fed, Judge, flat
from quant.rotation.learned import learned_block
from quant.rotation.readings import Readings
from quant.rotation.smooth import factors, running_peaks, search_exponent, weight_peaks
from quant.rotation.transform import InputTransform


class Smoothed(NamedTuple):
    """Smoothing factors [C] float32, and the exponent that they have."""

    factors: Tensor
    exponent: float


class Rotated(NamedTuple):
    """A rotation by its parts; `randomized` says that its first block is a Hadamard matrix with random signs."""

    blocks: Blocks
    randomized: bool


@dataclass
class Chooser:
    """Chooses by a recipe.

    Attributes:
        layers: the float layers by name.
        schemes: how each layer that may be asked about is to be quantized.
        seen: what they were fed.
        readings: which of them read the same tensors.
        recipe: says how.
        seed: of everything random.
    """

    layers: Mapping[str, FloatLayer]
    schemes: Mapping[str, Scheme]
    seen: ChannelStatistics
    readings: Readings
    recipe: Recipe
    seed: int
    _judges: dict[tuple[str, ...], Judge] = field(default_factory=dict)

    def width(self, name: str) -> int:
        """Channels of a layer's input."""
        return input_channels(self.layers[name])

    def source(self, name: str) -> tuple[object, ...]:
        """Equal for layers that read the same tensors at all times, and in the same way."""
        reading, layer = self.readings.layers.get(name), self.layers[name]
        return (type(layer), *(reading.inputs if reading else (name,)))

    def factors(self, names: Sequence[str], within: int) -> Smoothed | None:
        """Factors for layers that take one transform; None where the recipe has none, or none are best.

        A search tries each exponent together with a Hadamard rotation, where the recipe rotates within so many
        channels by whatever method: rotations are found on smoothed inputs, so after it.
        """
        smoothing, width = self.recipe.smoothing, self.width(names[0])
        if smoothing.method == "none":
            return None
        peaks = torch.stack([self.seen.layers[name].peaks for name in names]).amax(0)
        of_inputs = running_peaks(peaks, smoothing.momentum)
        of_weights = torch.stack([weight_peaks(self.layers[name].weight) for name in names]).amax(0)
        exponent: float | None = smoothing.exponent
        if smoothing.method == "search":
            judge, probe = self.judge(names), self._probe(within)

            def error(tried: Tensor) -> float:
                return judge.error(InputTransform(width, tried, probe))

            exponent, _ = search_exponent(of_inputs, of_weights, error)
        return None if exponent is None else Smoothed(factors(of_inputs, of_weights, exponent), exponent)

    def rotation(self, names: Sequence[str], smoothed: Smoothed | None, within: int) -> Rotated:
        """The rotation of layers that take one transform, found on smoothed inputs; mixes at most `within` channels.

        Raises:
            ValueError: no block of two or more channels fits.
        """
        how, width = self.recipe.rotation, self.width(names[0])
        block = block_of(within, how.block)
        if block < 2:
            raise ValueError(f"no power of two divides {within} channels")
        if how.method == "hadamard":
            return Rotated(Blocks(hadamard(block, self.seed)), randomized=True)
        rows = self._rows(names, smoothed)
        if how.method == "greedy":
            return Rotated(greedy(rows, block, self.seed, permute=within == width), randomized=False)
        weight = torch.cat([flat(self.layers[name].weight) for name in names])
        if smoothed is not None:
            weight = weight * smoothed.factors
        scheme = self.schemes[names[0]]
        bits, inputs = scheme.weights.bits, scheme.activations
        learned = learned_block(rows, weight, block, bits, inputs.bits, how.iterations, self.seed, grain=inputs.grain)
        return Rotated(Blocks(learned), randomized=False)

    def gain(self, names: Sequence[str], plain: Smoothed | None, smoothed: Smoothed | None, rotated: Rotated) -> float:
        """Share of the layers' squared output error that a rotation takes away, with factors that go with it, of what
        remains with the factors that are best without; negative where it adds to it.
        """
        judge, width = self.judge(names), self.width(names[0])
        without = judge.error(InputTransform(width, None if plain is None else plain.factors))
        turned = InputTransform(width, None if smoothed is None else smoothed.factors, rotated.blocks)
        return 1.0 - judge.error(turned) / max(without, 1e-30)

    def judge(self, names: Sequence[str]) -> Judge:
        """Judges transforms of layers together."""
        key = tuple(names)
        if key not in self._judges:
            self._judges.clear()  # of one group at a time: outputs take memory
            self._judges[key] = Judge([self._fed(group) for group in self.by_source(names)])
        return self._judges[key]

    def by_source(self, names: Sequence[str]) -> list[list[str]]:
        """Layers in groups that read the same tensors, in order."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            groups.setdefault(self.source(name), []).append(name)
        return list(groups.values())

    def _fed(self, names: Sequence[str]) -> Fed:
        readers = [(self.layers[name].weight.detach(), self.schemes[name]) for name in names]
        return Fed.of(self.seen.layers[names[0]], readers)

    def _rows(self, names: Sequence[str], smoothed: Smoothed | None) -> Tensor:
        rows = torch.cat([self.seen.layers[group[0]].rows for group in self.by_source(names)])
        return rows if smoothed is None else rows / smoothed.factors

    def _probe(self, within: int) -> Blocks | None:
        block = block_of(within, self.recipe.rotation.block)
        return Blocks(hadamard(block, self.seed)) if self.recipe.rotation.method != "none" and block > 1 else None
