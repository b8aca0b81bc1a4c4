"""One float layer to its quantized form: weights to nearest integers, input grids from statistics. Knows no module."""

from __future__ import annotations

import math

import torch

from quant.calibrate import LayerStatistics
from quant.errors import CalibrationError, QuantError
from quant.grid import Affine, from_integers, to_integers, weight_scales
from quant.layers import FloatLayer, InputGrid, Quantized, QuantizedLayer, empty_like, parts_of
from quant.observe import Histogram, best_grid, rounding_error
from quant.recipe import FLOAT_BITS, Activations, Scheme
from quant.report import LayerForm
from quant.temporal.scales import time_grids


def form_of(scheme: Scheme, seen: LayerStatistics, slots: int, sizes: tuple[int, ...]) -> LayerForm:
    """The form that a layer gets: input scales follow time where the scheme asks and rows lead the layer's input."""
    activations = scheme.activations
    timed = "each" in (activations.steps, activations.branches) and seen.rows_lead
    bits = None if activations.bits == FLOAT_BITS else activations.bits
    return LayerForm(
        weight_bits=scheme.weights.bits, input_bits=bits, slots=slots if timed and bits else 0, sizes=sizes
    )


def round_layer(name: str, layer: FloatLayer, scheme: Scheme, form: LayerForm, seen: LayerStatistics) -> Quantized:
    """The layer rounded to nearest, with grids for its input.

    Raises:
        QuantError: a weight is not finite, or no grid holds the input.
    """
    try:
        quantized = empty_like(layer, InputGrid(form.input_bits, form.slots), "cpu", sizes=form.sizes)
        _set_weights(quantized, layer, scheme)
        for part, statistics in zip(parts_of(quantized), seen.parts or [seen], strict=True):
            _set_grid(part, scheme.activations, statistics, form)
    except (ValueError, CalibrationError) as error:
        raise QuantError(f"layer {name}: {error}") from error
    return quantized.eval()


def _set_weights(quantized: Quantized, layer: FloatLayer, scheme: Scheme) -> None:
    parts, bits = parts_of(quantized), scheme.weights.bits
    weights = torch.split(layer.weight.detach(), [part.integers.shape[1] for part in parts], dim=1)
    for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        scales = weight_scales(weight, bits, scheme.weights.range)
        part.set_weight(to_integers(weight, scales, bits), scales, layer.bias if index == 0 else None)


def _set_grid(part: QuantizedLayer, activations: Activations, seen: LayerStatistics, form: LayerForm) -> None:
    if form.input_bits is None:
        return
    if form.slots:
        part.set_time_grids(*time_grids(seen.each, seen.inputs, form.slots, activations))
    else:
        part.set_grid(grid_of(seen.inputs, activations))


def grid_of(inputs: Histogram, activations: Activations) -> Affine:
    """One grid for all that was counted.

    Raises:
        CalibrationError: nothing was counted, or nothing but zeros.
    """
    search, power, percentile = activations.range, activations.power, activations.percentile
    return best_grid(inputs, activations.bits, search, power=power, percentile=percentile)


def predicted_error(layer: FloatLayer, quantized: Quantized, seen: LayerStatistics) -> float:
    """Relative error of the output if rounding errors of weights and inputs were independent of both."""
    weight, parts = layer.weight.detach(), parts_of(quantized)
    stood_for = torch.cat([from_integers(part.integers, part.scales) for part in parts], dim=1)
    of_weight = float((stood_for - weight).square().sum() / torch.clamp(weight.square().sum(), min=1e-30))
    statistics = seen.parts or [seen]
    pairs = list(zip(parts, statistics, strict=True))
    power = math.fsum(one.inputs.power * one.inputs.total for one in statistics)
    lost = math.fsum(_input_error(part, one) * one.inputs.total for part, one in pairs)
    return math.sqrt(of_weight + lost / max(power, 1e-30))


def _input_error(part: QuantizedLayer, seen: LayerStatistics) -> float:
    """Mean squared rounding error of a layer's input."""
    if part.input_scale is None or part.input_zero_point is None:
        return 0.0
    bits, zero_point = (part.activation_high + 1).bit_length() - 1, int(part.input_zero_point)
    if not part.follows_time:
        return rounding_error(seen.inputs, Affine(float(part.input_scale), zero_point, bits))
    cells = [
        (histogram, Affine(float(part.input_scale[slot * 3 + branch]), zero_point, bits))
        for (slot, branch), histogram in seen.each.items()
    ]
    total = sum(histogram.total for histogram, _ in cells)
    return math.fsum(rounding_error(histogram, grid) * histogram.total for histogram, grid in cells) / max(1, total)
