"""Turns a float module into one of quantized layers, in place, and reports on every layer. Must not know any model.

Round to nearest with searched ranges: each weight channel and each input gets the grid of least squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from quant.calibrate import LayerStatistics, Statistics
from quant.errors import CalibrationError, QuantError
from quant.grid import Affine, from_integers, to_integers, weight_scales
from quant.layers import FloatLayer, QuantizedLayer, empty_like, layer_kind, quantizable_layers, replace_layers
from quant.observe import best_grid, rounding_error
from quant.recipe import Activations, Recipe, Scheme
from quant.report import LayerReport, Report


def quantize_(module: nn.Module, recipe: Recipe, statistics: Statistics) -> Report:
    """Replaces, in place, every layer that the recipe quantizes; float weights of those are let go.

    Nothing is replaced unless every layer could be.

    Raises:
        QuantError: a weight holds NaN or infinity, or the statistics are of another module.
    """
    layers = quantizable_layers(module)
    if layers.keys() != statistics.layers.keys():
        strange = sorted(layers.keys() ^ statistics.layers.keys())
        raise QuantError(f"the statistics are of another module; they differ in {', '.join(strange[:5])}")
    fresh: dict[str, QuantizedLayer] = {}
    reports: list[LayerReport] = []
    for name, owner, tensors in owners_of_weights(module):
        layer = layers.get(name)
        if layer is None:
            reports.append(_without_form(name, owner, tensors))
            continue
        seen = statistics.layers[name]
        quantized = _quantize_layer(name, layer, recipe, seen)
        if isinstance(quantized, QuantizedLayer):
            fresh[name] = quantized
        reports.append(_report(name, layer, quantized, recipe, seen, statistics.rows))
    replace_layers(module, fresh)
    return Report(layers=tuple(reports))


def owners_of_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """(dotted name, module, its own saved tensors) of every module that has parameters or saved buffers of its own."""
    owned: dict[str, list[Tensor]] = {}
    for name, tensor in module.state_dict().items():
        owned.setdefault(name.rpartition(".")[0], []).append(tensor)
    for name, owner in module.named_modules():
        if name in owned:
            yield name, owner, owned[name]


def _quantize_layer(name: str, layer: FloatLayer, recipe: Recipe, seen: LayerStatistics) -> QuantizedLayer | str:
    """The quantized layer, or the reason why it stays float."""
    decision = recipe.decide(name)
    if decision.scheme is None:
        return decision.because
    if seen.inputs.total == 0:
        return "it never ran while calibrating"
    if seen.inputs.low == seen.inputs.high == 0.0:
        return "its input was always zero while calibrating"
    try:
        return _round_to_nearest(layer, decision.scheme, seen)
    except (ValueError, CalibrationError) as error:
        raise QuantError(f"layer {name}: {error}") from error


def _round_to_nearest(layer: FloatLayer, scheme: Scheme, seen: LayerStatistics) -> QuantizedLayer:
    bits = scheme.weights.bits
    scales = weight_scales(layer.weight, bits, scheme.weights.range)
    quantized = empty_like(layer, scheme.activations.bits)
    quantized.set_values(to_integers(layer.weight, scales, bits), scales, layer.bias, _grid(scheme.activations, seen))
    return quantized.eval()


def _grid(activations: Activations, seen: LayerStatistics) -> Affine:
    return best_grid(
        seen.inputs,
        activations.bits,
        activations.range,
        power=activations.power,
        percentile=activations.percentile,
    )


def _report(
    name: str, layer: FloatLayer, quantized: QuantizedLayer | str, recipe: Recipe, seen: LayerStatistics, rows: int
) -> LayerReport:
    before = float_bytes(layer.parameters(recurse=False))
    kept = LayerReport(
        name=name, kind=layer_kind(layer), bytes_before=before, bytes_after=before, macs=seen.macs // rows
    )
    scheme = recipe.decide(name).scheme
    if isinstance(quantized, str) or scheme is None:
        return kept.model_copy(update={"kept_float_because": quantized})
    return kept.model_copy(
        update={
            "scheme": scheme.text,
            "bytes_after": sum(buffer.nbytes for buffer in quantized.buffers()),
            "error": _predicted_error(layer, quantized, seen),
        }
    )


def _without_form(name: str, owner: nn.Module, tensors: list[Tensor]) -> LayerReport:
    size = float_bytes(tensors)
    kind = type(owner).__name__
    return LayerReport(
        name=name, kind=kind, bytes_before=size, bytes_after=size, kept_float_because=f"{kind} has no quantized form"
    )


def float_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors stored in float32."""
    return sum(4 * tensor.numel() for tensor in tensors)


def _predicted_error(layer: FloatLayer, quantized: QuantizedLayer, seen: LayerStatistics) -> float:
    """Relative error of the output if rounding errors of weights and inputs were independent of both."""
    weight = layer.weight
    grid = Affine(float(quantized.input_scale), int(quantized.input_zero_point), _bits(quantized))
    of_input = rounding_error(seen.inputs, grid) / max(seen.inputs.power, 1e-30)
    difference = from_integers(quantized.integers, quantized.scales) - weight
    of_weight = float(difference.square().sum() / torch.clamp(weight.square().sum(), min=1e-30))
    return math.sqrt(of_input + of_weight)


def _bits(layer: QuantizedLayer) -> int:
    return (layer.activation_high + 1).bit_length() - 1
