"""One float layer to its quantized form: weights to nearest integers, input grids from statistics. Knows no module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from quant.calibrate import LayerStatistics, Statistics
from quant.clock import BRANCHES
from quant.errors import CalibrationError, QuantError
from quant.grid import Affine, to_integers, weight_scales
from quant.layers import FloatLayer, Quantized, QuantizedLayer, parts_of
from quant.observe import Histogram, best_grid, rounding_error
from quant.published import PublishedLayer, empty_of
from quant.ranges import TimeRanges
from quant.recipe import Activations, Decision, Recipe, Scheme
from quant.report import LayerForm
from quant.rotation.channels import Channels
from quant.rotation.per_range import PerRange, plain_form, sampled_error
from quant.temporal.cells import Cells
from quant.temporal.scales import time_grids


@dataclass(frozen=True)
class Basis:
    """What layers are rounded by.

    Attributes:
        recipe: which decides.
        statistics: of the float module.
        ranges: of time; None where nothing follows them.
        seed: of rotations that are found for each range.
        own_names: of layers behind an input transform: the names that rules are about.
    """

    recipe: Recipe
    statistics: Statistics
    ranges: TimeRanges | None = None
    seed: int = 0
    own_names: Mapping[str, str] = field(default_factory=dict)

    def decide(self, name: str) -> Decision:
        """What the recipe says of a layer."""
        return self.recipe.decide(self.own_names.get(name, name))

    def channels(self, name: str) -> Channels | None:
        """What a layer's input channels were fed; None where that was not observed."""
        seen = self.statistics.channels
        return None if seen is None else seen.layers[name]


def why_static(scheme: Scheme, form: LayerForm, seen: LayerStatistics) -> str:
    """Why a layer has one input scale for all times where its scheme asks for more; empty where that is not so."""
    if form.slots or not scheme.activations.follows_time:
        return ""
    if not seen.rows_lead:
        return "the first dimension of their inputs is not the call's rows"
    if scheme.activations.least_gain and len(seen.each) > 1:
        return f"following time would take away less than {scheme.activations.least_gain:.0%} of their error"
    return "no argument is a timestep"


def text_of(scheme: Scheme, form: LayerForm) -> str:
    """One line for people and for manifests: how a layer with a scheme and the form that it got is quantized."""
    ways = scheme.activations
    weights = f"s{form.weight_bits} per channel" + (" with zero points" if form.offset_weights else "")
    if form.kind == "published":
        weights += f" for each of {form.ranges} ranges of time"
    if form.input_bits is None:
        return f"{weights}, float inputs"
    if form.grain == "token":
        return f"{weights}, u{form.input_bits} per token" + (" with zero points" if form.zero_point == "token" else "")
    steps = {"shared": "", "ranges": "range of steps", "each": "step"}[ways.steps]
    own = [name for name in (steps, "branch" if ways.branches == "each" else "") if form.slots and name]
    return " and ".join([f"{weights}, u{form.input_bits} per tensor", *own])


def round_layer(name: str, layer: FloatLayer, scheme: Scheme, basis: Basis) -> tuple[Quantized, LayerForm]:
    """The layer rounded to nearest, with grids for its input, and its form.

    Raises:
        QuantError: a weight is not finite, no grid holds the input, or the statistics lack what the scheme needs.
    """
    try:
        if scheme.weights.ranges == "each":
            return _for_each_range(name, layer, scheme, basis)
        form = _form_of(name, scheme, basis)
        quantized = _filled(name, layer, scheme, form, basis)
        if form.slots and scheme.activations.least_gain:
            static = form.model_copy(update={"slots": 0})
            plain = _filled(name, layer, scheme, static, basis)
            if _gain(name, layer, (plain, quantized), basis) < scheme.activations.least_gain:
                form, quantized = static, plain
    except (ValueError, CalibrationError) as error:
        raise QuantError(f"layer {name}: {error}") from error
    return quantized.eval(), form


def _filled(name: str, layer: FloatLayer, scheme: Scheme, form: LayerForm, basis: Basis) -> Quantized:
    """The layer in a form, with weights to nearest and input grids."""
    seen, quantized = basis.statistics.layers[name], empty_of(layer, form, "cpu")
    _set_weights(quantized, layer, scheme)
    for part, statistics in zip(parts_of(quantized), seen.parts or [seen], strict=True):
        _set_grid(part, scheme.activations, statistics, form, basis.ranges)
    return quantized


def _gain(name: str, layer: FloatLayer, forms: tuple[Quantized, Quantized], basis: Basis) -> float:
    """Share of the first form's squared error, as predicted, that the second does not have."""
    first, second = (predicted_error(name, layer, form, basis) ** 2 for form in forms)
    return 1 - second / first if first else 0.0


def _for_each_range(name: str, layer: FloatLayer, scheme: Scheme, basis: Basis) -> tuple[Quantized, LayerForm]:
    channels, recipe = basis.channels(name), basis.recipe
    if channels is None or basis.ranges is None:
        raise CalibrationError("weights for each range of time need ranges, and statistics of channels")
    return PerRange(recipe.rotation, recipe.smoothing, basis.ranges, basis.seed).rounded(name, layer, scheme, channels)


def _form_of(name: str, scheme: Scheme, basis: Basis) -> LayerForm:
    """Input scales follow time where the scheme asks and rows lead the layer's input."""
    statistics = basis.statistics
    timed = scheme.activations.follows_time and statistics.layers[name].rows_lead
    slots, sizes = len(statistics.schedule) if timed else 0, statistics.splits.get(name, ())
    return plain_form(scheme).model_copy(update={"slots": slots, "sizes": sizes})


def _set_weights(quantized: Quantized, layer: FloatLayer, scheme: Scheme) -> None:
    parts, bits = parts_of(quantized), scheme.weights.bits
    weights = torch.split(layer.weight.detach(), [part.integers.shape[1] for part in parts], dim=1)
    for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        scales = weight_scales(weight, bits, scheme.weights.range)
        part.set_weight(to_integers(weight, scales, bits), scales, layer.bias if index == 0 else None)


def _set_grid(
    part: QuantizedLayer, activations: Activations, seen: LayerStatistics, form: LayerForm, ranges: TimeRanges | None
) -> None:
    if form.input_bits is None or form.zero_point == "token":
        return
    if form.grain == "token":
        part.set_zero_point(seen.tokens.zero_point(form.input_bits))
    elif form.slots:
        own = ranges.used if ranges is not None else ()
        part.set_time_grids(*time_grids(seen.each, seen.inputs, form.slots, activations, own))
    else:
        part.set_grid(grid_of(seen.inputs, activations))


def grid_of(inputs: Histogram, activations: Activations) -> Affine:
    """One grid for all that was counted.

    Raises:
        CalibrationError: nothing was counted, or nothing but zeros.
    """
    search, power, percentile = activations.range, activations.power, activations.percentile
    return best_grid(inputs, activations.bits, search, power=power, percentile=percentile)


def predicted_error(name: str, layer: FloatLayer, quantized: Quantized, basis: Basis) -> float:
    """Relative error of the output if rounding errors of weights and inputs were independent of both.

    Of a layer with weights for each range of time it is measured, on samples of its input.
    """
    seen, channels = basis.statistics.layers[name], basis.channels(name)
    if isinstance(quantized, PublishedLayer) and channels is not None:
        return sampled_error(layer, quantized, channels)
    weight, parts = layer.weight.detach(), parts_of(quantized)
    stood_for = torch.cat([part.weight for part in parts], dim=1)
    of_weight = float((stood_for - weight).square().sum() / torch.clamp(weight.square().sum(), min=1e-30))
    statistics = seen.parts or [seen]
    pairs = list(zip(parts, statistics, strict=True))
    power = math.fsum(one.inputs.power * one.inputs.total for one in statistics)
    lost = math.fsum(input_error(part, one) * one.inputs.total for part, one in pairs)
    return math.sqrt(of_weight + lost / max(power, 1e-30))


def input_error(part: QuantizedLayer, seen: LayerStatistics) -> float:
    """Mean squared rounding error of a layer's input."""
    bits = (part.activation_high + 1).bit_length() - 1
    zero_point = None if part.input_zero_point is None else int(part.input_zero_point)
    if part.by_token:
        return seen.tokens.error(bits, zero_point)
    if part.input_scale is None or zero_point is None:
        return 0.0
    if not part.follows_time:
        return rounding_error(seen.inputs, Affine(float(part.input_scale), zero_point, bits))
    cells = Cells.of(list(seen.each.values()), Activations(bits=bits))
    scales = part.input_scale[[slot * BRANCHES + branch for slot, branch in seen.each]]
    totals = torch.tensor([float(histogram.total) for histogram in seen.each.values()])
    return float((cells.errors(scales, zero_point) * totals).sum() / totals.sum().clamp(min=1))
