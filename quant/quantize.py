"""Turns a float module into a quantized one, in place, and reports on every layer. Must not know any model.

In order: every layer that the recipe quantizes is rounded to nearest, with grids for its input; weights are
reconstructed where the recipe asks (AdaRound); layers that turn the timestep into features get what the recipe maintains
them by; and, where the recipe leaves room for it, layers whose rounding moves the model's output most go back to float.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.backends.moment import needs_moment
from quant.calibrate import SampleWish, Statistics, calibrate
from quant.clock import MomentHolder
from quant.errors import CalibrationError, QuantError
from quant.layers import (
    FloatLayer,
    Quantized,
    bind,
    layer_kind,
    quantizable_layers,
    replace_layers,
)
from quant.nearest import form_of, predicted_error, round_layer
from quant.recipe import Recipe, Sensitive
from quant.reconstruct import reconstruct
from quant.report import LayerForm, LayerReport, Report
from quant.sensitivity import output_errors, worth_keeping
from quant.splits import find_splits
from quant.stages import Stages
from quant.temporal.discover import TemporalLeaf, UnknownStructure, discover
from quant.temporal.features import TemporalPlan
from quant.temporal.maintain import Kept, Maintained, maintain, temporal_reports

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quantization:
    """What quantizing a module gave, beside the module itself.

    Attributes:
        report: every layer.
        forms: of every layer with integers, by its name in the quantized module.
        plan: what holds of time; None where nothing in the module follows it.
        fallback: temporal leaves by name that are stored apart, for timesteps that no table knows.
    """

    report: Report
    forms: Mapping[str, LayerForm] = field(default_factory=dict)
    plan: TemporalPlan | None = None
    fallback: Mapping[str, Kept] = field(default_factory=dict)


@dataclass
class Work:
    """How the work is done: resumable stages, a seed, someone to tell; and how many seconds it took."""

    stages: Stages
    seed: int = 0
    progress: Progress = lambda what, done, total: None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Fate:
    """What becomes of a layer: its quantized form, or the reason why it stays float."""

    layer: Quantized | None = None
    form: LayerForm | None = None
    because: str = ""
    effect: float | None = None


def reconstruction_key(recipe: Recipe) -> str:
    """Equal for two recipes exactly when the same statistics give them the same reconstructed weights.

    Grids of inputs do not matter, for weights are reconstructed on float inputs; nor does what becomes of temporal
    layers that are treated apart.
    """
    rounding = recipe.rounding.model_copy(update={"activation_iterations": 0})
    learned = (recipe.rounding.activation_iterations, recipe.activations) if recipe.rounding.activation_iterations else ()
    apart = recipe.temporal.maintenance != "none"
    rules = [(rule.match, rule.keep, rule.weights) for rule in recipe.rules]
    return repr((recipe.weights, rounding, learned, rules, recipe.split_skips, recipe.scope, apart))


class _Enough(Exception):
    """The first call was seen."""


def calibrate_for(
    module: nn.Module, run: Callable[[Callable[[Call], Tensor]], object], recipe: Recipe, *, seed: int = 0
) -> Statistics:
    """What `quantize_` needs to know by this recipe: `calibrate` with what the recipe asks for.

    Raises:
        CalibrationError: the module was never called, or a layer was fed NaN or infinity.
    """
    splits = find_splits(module, first_call(run)) if recipe.split_skips else None
    wish = None
    if recipe.rounding.method == "adaround":
        wish = SampleWish(recipe.rounding.samples, recipe.rounding.timesteps)
    timed = "each" in (recipe.activations.steps, recipe.activations.branches)
    return calibrate(module, run, by_time=timed, splits=splits, samples=wish, seed=seed)


def first_call(run: Callable[[Callable[[Call], Tensor]], object]) -> Call:
    """The first call that a run makes, which is stopped there.

    Raises:
        CalibrationError: it makes none.
    """
    seen: list[Call] = []

    def answer(call: Call) -> Tensor:
        seen.append(call.take(torch.tensor([0])))
        raise _Enough

    with suppress(_Enough):
        run(answer)
    if not seen:
        raise CalibrationError("the model was never called while calibrating: there is nothing to quantize by")
    return seen[0]


def quantize_(module: nn.Module, recipe: Recipe, statistics: Statistics, work: Work | None = None) -> Quantization:
    """Replaces, in place, every layer that the recipe quantizes; float weights of those are let go.

    Nothing is replaced unless every layer could be.

    Raises:
        QuantError: a weight holds NaN or infinity, or the statistics are of another module.
    """
    started, work = time.monotonic(), work or Work(Stages(None, ""))
    layers = quantizable_layers(module)
    if layers.keys() != statistics.layers.keys():
        strange = sorted(layers.keys() ^ statistics.layers.keys())
        raise QuantError(f"the statistics are of another module; they differ in {', '.join(strange[:5])}")
    leaves, notes = temporal_leaves(module, recipe, statistics)
    names = {leaf.name for leaf in leaves}
    fates = {name: _first_fate(name, layer, recipe, statistics, names) for name, layer in layers.items()}
    _reconstruct(module, fates, recipe, statistics, work)
    maintained = maintain(module, leaves, recipe.temporal, statistics, seed=work.seed, progress=work.progress)
    _keep_sensitive(module, layers, fates, recipe.sensitive, statistics)
    reports = _reports(module, layers, fates, recipe, statistics, maintained)
    forms = {name: fate.form for name, fate in fates.items() if fate.form is not None} | dict(maintained.forms)
    replace_layers(module, {**_quantized(fates), **maintained.replacements})
    bind(module, MomentHolder())
    plan = maintained.plan if needs_moment(module) else None
    work.seconds = time.monotonic() - started + work.stages.resumed_seconds
    return Quantization(Report(layers=reports, notes=notes + maintained.notes), forms, plan, maintained.fallback)


def temporal_leaves(
    module: nn.Module, recipe: Recipe, statistics: Statistics
) -> tuple[tuple[TemporalLeaf, ...], tuple[str, ...]]:
    """The temporal leaves that the recipe treats apart, and what to note; none where it treats them as all others."""
    if recipe.temporal.maintenance == "none" and recipe.scope == "all":
        return (), ()
    try:
        return discover(module, statistics.calls[0]), ()
    except UnknownStructure as error:
        return (), (f"temporal layers are treated as all others: {error}",)


def _first_fate(
    name: str, layer: FloatLayer, recipe: Recipe, statistics: Statistics, temporal: set[str]
) -> _Fate:
    decision, seen = recipe.decide(name), statistics.layers[name]
    if name in temporal and recipe.temporal.maintenance != "none":
        return _Fate(because="temporal: left float by the recipe")
    if name not in temporal and recipe.scope == "temporal":
        return _Fate(because="the recipe's scope is temporal layers")
    if decision.scheme is None:
        return _Fate(because=decision.because)
    if seen.inputs.total == 0:
        return _Fate(because="it never ran while calibrating")
    if seen.inputs.low == seen.inputs.high == 0.0:
        return _Fate(because="its input was always zero while calibrating")
    form = form_of(decision.scheme, seen, len(statistics.schedule), statistics.splits.get(name, ()))
    return _Fate(round_layer(name, layer, decision.scheme, form, seen), form)


def _quantized(fates: Mapping[str, _Fate]) -> dict[str, Quantized]:
    return {name: fate.layer for name, fate in fates.items() if fate.layer is not None}


def _reconstruct(
    module: nn.Module, fates: Mapping[str, _Fate], recipe: Recipe, statistics: Statistics, work: Work
) -> None:
    """Has AdaRound choose the integers, where the recipe says so; what follows time does so already."""
    if recipe.rounding.method == "adaround":
        reconstruct(
            module,
            _quantized(fates),
            statistics.samples,
            recipe.rounding,
            seed=work.seed,
            progress=work.progress,
            stages=work.stages,
        )


def _keep_sensitive(
    module: nn.Module,
    layers: Mapping[str, FloatLayer],
    fates: dict[str, _Fate],
    room: Sensitive,
    statistics: Statistics,
) -> None:
    """Turns the fate of layers that are worth it into a reason, and notes each layer's squared effect on the output."""
    if room.macs == 0 or room.bytes == 0:
        return
    effects = output_errors(module, _quantized(fates), statistics)
    macs = sum(seen.macs for seen in statistics.layers.values())
    size = float_bytes(module.state_dict().values())
    costs = {
        name: (statistics.layers[name].macs / macs, float_bytes(layers[name].parameters()) / size) for name in effects
    }
    total = sum(effects.values())
    kept = set(worth_keeping(effects, costs, (room.macs, room.bytes), room.least))
    for name, effect in effects.items():
        part, cost = 100 * effect / total if total else 0.0, 100 * costs[name][0]
        because = f"sensitive: {part:.1f}% of the output's squared error for {cost:.1f}% of the multiply-adds"
        old = fates[name]
        fates[name] = _Fate(because=because, effect=effect) if name in kept else _Fate(old.layer, old.form, "", effect)


def owners_of_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """(dotted name, module, its own saved tensors) of every module that has parameters or saved buffers of its own."""
    owned: dict[str, list[Tensor]] = {}
    for name, tensor in module.state_dict().items():
        owned.setdefault(name.rpartition(".")[0], []).append(tensor)
    for name, owner in module.named_modules():
        if name in owned:
            yield name, owner, owned[name]


def _reports(
    module: nn.Module,
    layers: Mapping[str, FloatLayer],
    fates: Mapping[str, _Fate],
    recipe: Recipe,
    statistics: Statistics,
    maintained: Maintained,
) -> tuple[LayerReport, ...]:
    """What became of every module that owns weights, in order. Called while the module is still float."""
    temporal = temporal_reports(maintained)
    reports = []
    for name, owner, tensors in owners_of_weights(module):
        told = _report(name, layers[name], fates[name], recipe, statistics) if name in layers else None
        told = told or _without_form(name, owner, tensors)
        reports.append(told.model_copy(update=temporal.get(name, {})))
    return tuple(reports)


def _report(name: str, layer: FloatLayer, fate: _Fate, recipe: Recipe, statistics: Statistics) -> LayerReport:
    before, seen = float_bytes(layer.parameters(recurse=False)), statistics.layers[name]
    told = LayerReport(
        name=name,
        kind=layer_kind(layer),
        bytes_before=before,
        bytes_after=before,
        macs=seen.macs // statistics.rows,
        output_error=None if fate.effect is None else math.sqrt(fate.effect),
    )
    scheme = recipe.decide(name).scheme
    if fate.layer is None or scheme is None:
        return told.model_copy(update={"kept_float_because": fate.because})
    return told.model_copy(
        update={
            "scheme": scheme.text,
            "bytes_after": buffer_bytes(fate.layer),
            "error": predicted_error(layer, fate.layer, seen),
        }
    )


def _without_form(name: str, owner: nn.Module, tensors: list[Tensor]) -> LayerReport:
    size = float_bytes(tensors)
    kind = type(owner).__name__
    return LayerReport(
        name=name, kind=kind, bytes_before=size, bytes_after=size, kept_float_because=f"{kind} has no quantized form"
    )


def buffer_bytes(layer: nn.Module) -> int:
    """Bytes of a layer's buffers as they lie in memory."""
    return sum(buffer.nbytes for buffer in layer.buffers())


def float_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors stored in float32."""
    return sum(4 * tensor.numel() for tensor in tensors)
