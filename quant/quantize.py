"""Turns a float module into one of quantized layers, in place, and reports on every layer. Must not know any model.

Round to nearest with searched ranges: each weight channel and each input gets the grid of least squared error. Then,
where the recipe leaves room for it, the layers whose rounding moves the model's output most go back to float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from quant.calibrate import LayerStatistics, Statistics
from quant.errors import CalibrationError, QuantError
from quant.grid import Affine, from_integers, to_integers, weight_scales
from quant.layers import FloatLayer, QuantizedLayer, empty_like, layer_kind, quantizable_layers, replace_layers
from quant.observe import best_grid, rounding_error
from quant.recipe import Activations, Recipe, Scheme, Sensitive
from quant.report import LayerReport, Report
from quant.sensitivity import output_errors, worth_keeping


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
    outcomes = {name: _quantize_layer(name, layer, recipe, statistics.layers[name]) for name, layer in layers.items()}
    effects = _keep_sensitive(module, layers, outcomes, recipe.sensitive, statistics)
    reports = [
        _report(name, layers[name], outcomes[name], recipe, statistics, effects.get(name))
        if name in layers
        else _without_form(name, owner, tensors)
        for name, owner, tensors in owners_of_weights(module)
    ]
    replace_layers(module, _quantized(outcomes))
    return Report(layers=tuple(reports))


Outcome = QuantizedLayer | str
"""What becomes of a layer: its quantized form, or the reason why it stays float."""


def _quantized(outcomes: Mapping[str, Outcome]) -> dict[str, QuantizedLayer]:
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, QuantizedLayer)}


def _keep_sensitive(
    module: nn.Module,
    layers: Mapping[str, FloatLayer],
    outcomes: dict[str, Outcome],
    room: Sensitive,
    statistics: Statistics,
) -> dict[str, float]:
    """Turns the outcome of layers that are worth it into a reason; each layer's squared effect on the output."""
    if room.macs == 0 or room.bytes == 0:
        return {}
    effects = output_errors(module, _quantized(outcomes), statistics.calls)
    macs = sum(seen.macs for seen in statistics.layers.values())
    size = float_bytes(module.state_dict().values())
    costs = {
        name: (statistics.layers[name].macs / macs, float_bytes(layers[name].parameters()) / size) for name in effects
    }
    total = sum(effects.values())
    for name in worth_keeping(effects, costs, (room.macs, room.bytes), room.least):
        part, cost = 100 * effects[name] / total, 100 * costs[name][0]
        outcomes[name] = f"sensitive: {part:.1f}% of the output's squared error for {cost:.1f}% of the multiply-adds"
    return effects


def owners_of_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """(dotted name, module, its own saved tensors) of every module that has parameters or saved buffers of its own."""
    owned: dict[str, list[Tensor]] = {}
    for name, tensor in module.state_dict().items():
        owned.setdefault(name.rpartition(".")[0], []).append(tensor)
    for name, owner in module.named_modules():
        if name in owned:
            yield name, owner, owned[name]


def _quantize_layer(name: str, layer: FloatLayer, recipe: Recipe, seen: LayerStatistics) -> Outcome:
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
    name: str, layer: FloatLayer, outcome: Outcome, recipe: Recipe, statistics: Statistics, effect: float | None
) -> LayerReport:
    before, seen = float_bytes(layer.parameters(recurse=False)), statistics.layers[name]
    told = LayerReport(
        name=name,
        kind=layer_kind(layer),
        bytes_before=before,
        bytes_after=before,
        macs=seen.macs // statistics.rows,
        output_error=None if effect is None else math.sqrt(effect),
    )
    scheme = recipe.decide(name).scheme
    if isinstance(outcome, str) or scheme is None:
        return told.model_copy(update={"kept_float_because": outcome})
    return told.model_copy(
        update={
            "scheme": scheme.text,
            "bytes_after": sum(buffer.nbytes for buffer in outcome.buffers()),
            "error": _predicted_error(layer, outcome, seen),
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
