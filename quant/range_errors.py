"""What it costs that neighbouring steps share an activation scale: the errors that time is divided by. Knows no models.

    errors[i][j] = sum over layers l of  e_l err_l(i..j) / sum over steps k of err_l(k..k)

err_l(i..j) is the squared rounding error of the layer's input over the steps i to j in order of timesteps under one
scale (for each branch), from histograms; e_l the squared error of the model's output that rounding that input alone
causes with a scale for each step, as measured (quant.sensitivity). So layers count by what they do to the output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from quant.calibrate import BINS_OF_EACH, Cell, LayerStatistics, Statistics
from quant.clock import BRANCHES, MomentHolder
from quant.grid import along_first
from quant.layers import FloatLayer, as_float_layer
from quant.observe import Histogram
from quant.ranges import Errors, TimeRanges, in_order, ranges_of
from quant.recipe import Activations, Recipe
from quant.rotation.attach import own_names
from quant.sensitivity import output_errors
from quant.temporal.cells import Cells, best_zero_point, least_errors, shares_of
from quant.temporal.scales import time_grids

_EVERY = 3
"""Of the candidates for a scale that are tried: a scale that is off by 2% errs by less than a thousandth more."""


def time_ranges(
    module: nn.Module, recipe: Recipe, statistics: Statistics, apart: Collection[str] = (), seed: int = 0
) -> TimeRanges | None:
    """The ranges that a recipe divides a calibrated schedule into.

    None where no layer follows ranges; where no argument is a timestep, scales then are those of all times.

    Args:
        module: the float model.
        recipe: which layers follow ranges, and how time is divided.
        statistics: of the module; by slot and branch where scales follow ranges.
        apart: layers that the recipe's rules do not decide about.
        seed: of the random directions by which effects are measured.

    Raises:
        CalibrationError: weights are to be rounded for each range and no argument is a timestep; or see `ranges_of`.
    """
    names = [name for name in statistics.layers if name not in apart] if recipe.scope == "all" else []
    own = own_names(module)
    schemes = {name: scheme for name in names if (scheme := recipe.decide(own.get(name, name)).scheme) is not None}
    each = any(scheme.weights.ranges == "each" for scheme in schemes.values())
    inputs = {
        name: scheme.activations
        for name, scheme in schemes.items()
        if scheme.activations.steps == "ranges" and _can_follow(statistics.layers[name])
    }
    if not each and (not inputs or not statistics.schedule):
        return None
    by_error = recipe.ranges.method == "dp" and statistics.schedule
    errors = range_errors(module, inputs, statistics, seed) if by_error else None
    return ranges_of(recipe.ranges, statistics.schedule, errors)


def _can_follow(seen: LayerStatistics) -> bool:
    return seen.rows_lead and _holds(seen.inputs)


def range_errors(module: nn.Module, inputs: Mapping[str, Activations], statistics: Statistics, seed: int = 0) -> Errors:
    """[n, n] float64 for `quant.ranges.ranges_of`: at [i, j], i <= j, the error of one range of the steps i to j.

    Args:
        module: the float model.
        inputs: dotted name of each layer whose input's scale is to follow ranges, and how the input is rounded.
        statistics: by slot and branch.
        seed: of the random directions by which effects are measured.
    """
    slots, order = len(statistics.schedule), in_order(statistics.schedule)
    rounded = {name: _RoundedInputs.of(module, name, ways, statistics) for name, ways in inputs.items()}
    effects = output_errors(module, rounded, statistics, seed)
    errors = np.zeros((slots, slots))
    for name, ways in inputs.items():
        seen = statistics.layers[name]
        own = sum(
            power * _shared(part.each, order, ways)
            for part, power in zip(_parts(seen), rounded[name].powers(), strict=True)
        )
        alone = float(np.trace(own))
        if alone > 0:
            errors += own * (effects[name] / alone)
    return errors


def _parts(seen: LayerStatistics) -> Sequence[LayerStatistics]:
    return seen.parts or [seen]


def _shared(each: Mapping[Cell, Histogram], order: Sequence[int], ways: Activations) -> Errors:
    """[n, n]: summed error of a layer's input over the steps i to j, in order, under one scale."""
    branches = [[branch] for branch in range(BRANCHES)] if ways.branches == "each" else [list(range(BRANCHES))]
    zero_point = best_zero_point(Cells.of([h for h in each.values() if _holds(h)], ways), shares_of(ways)[::_EVERY])
    errors = np.zeros((len(order), len(order)))
    for first in range(len(order)):
        for some in branches:
            merged = list(_merged(each, order[first:], some))
            if any(map(_holds, merged)):
                errors[first, first:] += _least(merged, zero_point, ways)
    return errors


def _merged(each: Mapping[Cell, Histogram], order: Sequence[int], branches: Sequence[int]) -> Iterator[Histogram]:
    """What was seen at the first step, at the first two, and so on."""
    whole = Histogram(bins=BINS_OF_EACH)
    for slot in order:
        for branch in branches:
            if (slot, branch) in each:
                whole.merge(each[slot, branch])
        yield replace(whole, counts=whole.counts.copy())


def _holds(histogram: Histogram) -> bool:
    return histogram.low < 0 or histogram.high > 0


def _least(histograms: Sequence[Histogram], zero_point: int, ways: Activations) -> Errors:
    holding = [index for index, histogram in enumerate(histograms) if _holds(histogram)]
    cells = Cells.of([histograms[index] for index in holding], ways)
    found = least_errors(cells, zero_point, shares_of(ways)[::_EVERY])[0].double().numpy()
    errors = np.zeros(len(histograms))
    errors[holding] = found * [histograms[index].total for index in holding]
    return errors


class _RoundedInputs(nn.Module):
    """A float layer whose input alone is rounded, with a scale for each step."""

    def __init__(
        self, layer: FloatLayer, sizes: tuple[int, ...], scales: list[Tensor], points: list[int], high: int
    ) -> None:
        super().__init__()
        self.holder = MomentHolder()
        self._layer, self._sizes, self._scales, self._points, self._high = [layer], sizes, scales, points, high

    @classmethod
    def of(cls, module: nn.Module, name: str, ways: Activations, statistics: Statistics) -> _RoundedInputs:
        layer = as_float_layer(module.get_submodule(name))
        if layer is None:
            raise TypeError(f"{name} is neither a linear nor a convolution")
        each = ways.model_copy(update={"steps": "each"})
        seen = statistics.layers[name]
        grids = [time_grids(part.each, part.inputs, len(statistics.schedule), each) for part in _parts(seen)]
        sizes = statistics.splits.get(name, ()) or (layer.weight.shape[1] * getattr(layer, "groups", 1),)
        return cls(layer, sizes, [scales.flatten() for scales, _ in grids], [z for _, z in grids], (1 << ways.bits) - 1)

    def powers(self) -> list[float]:
        """Mean square of the weights that each part of the input meets."""
        weight = self._layer[0].weight.detach()
        if len(self._sizes) == 1:
            return [float(weight.square().mean())]
        return [float(part.square().mean()) for part in torch.split(weight, list(self._sizes), dim=1)]

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output; none of its hooks runs."""
        layer, key = self._layer[0], self.holder.now.key
        pieces = torch.split(x, list(self._sizes), dim=-1 if isinstance(layer, nn.Linear) else 1)
        rounded = []
        for piece, scales, zero_point in zip(pieces, self._scales, self._points, strict=True):
            now = along_first(scales[key], piece)
            grid = torch.fake_quantize_per_tensor_affine(piece / now, 1.0, zero_point, 0, self._high)
            rounded.append(grid * now)
        whole = rounded[0] if len(rounded) == 1 else torch.cat(rounded, dim=-1 if isinstance(layer, nn.Linear) else 1)
        return layer.forward(whole)
