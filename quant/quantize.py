"""Turns a float module into a quantized one, in place, and reports on every layer. Must not know any model.

In order: every layer that the recipe quantizes is rounded to nearest, with grids for its input; weights are
reconstructed where the recipe asks (AdaRound); layers that turn the timestep into features get what the recipe
maintains them by. Where the recipe leaves room for it, layers whose rounding moves the output most are spared first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from quant.backends.moment import needs_moment
from quant.calibrate import Statistics
from quant.clock import MomentHolder
from quant.errors import QuantError
from quant.layers import (
    FloatLayer,
    Quantized,
    bind,
    quantizable_layers,
    replace_layers,
)
from quant.nearest import Basis, predicted_error, round_layer, text_of, why_static
from quant.range_errors import time_ranges
from quant.recipe import Recipe, Scheme
from quant.reconstruct import reconstruct
from quant.report import LayerForm, LayerReport, Report, counted
from quant.rotation.attach import detach_, own_names, transform_forms
from quant.rotation.report import TransformForm
from quant.rotation.transform import InputTransform
from quant.sensitivity import output_errors, worth_keeping
from quant.stages import Stages
from quant.temporal.discover import TemporalLeaf, UnknownStructure, discover
from quant.temporal.features import TemporalPlan
from quant.temporal.maintain import Kept, Maintained, maintain
from quant.temporal.report import temporal_reports

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quantization:
    """What quantizing a module gave, beside the module itself.

    Attributes:
        report: every layer.
        forms: of every layer with integers, by its name in the quantized module.
        transforms: of layers whose inputs are changed before, by the names that these had.
        plan: what holds of time; None where nothing in the module follows it.
        fallback: temporal leaves by name that are stored apart, for timesteps that no table knows.
    """

    report: Report
    forms: Mapping[str, LayerForm] = field(default_factory=dict)
    transforms: Mapping[str, TransformForm] = field(default_factory=dict)
    plan: TemporalPlan | None = None
    fallback: Mapping[str, Kept] = field(default_factory=dict)

    def noting(self, notes: tuple[str, ...]) -> Quantization:
        """The same with more notes for people, before its own."""
        return replace(self, report=self.report.model_copy(update={"notes": notes + self.report.notes}))


@dataclass
class Work:
    """How the work is done: resumable stages, a seed, someone to tell; and how many seconds it took."""

    stages: Stages
    seed: int = 0
    progress: Progress = lambda what, done, total: None
    seconds: float = 0.0


@dataclass(frozen=True)
class _Fate:
    """What becomes of a layer: its quantized form by a scheme, or the reason why it stays float."""

    layer: Quantized | None = None
    form: LayerForm | None = None
    because: str = ""
    effect: float | None = None
    scheme: Scheme | None = None


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
    ranges = time_ranges(module, recipe, statistics, names, work.seed)
    basis = Basis(recipe, statistics, ranges, work.seed, own_names(module))
    fates = {name: _first_fate(name, layer, basis, names) for name, layer in layers.items()}
    _spare_sensitive(module, layers, fates, basis)
    notes += () if ranges is None else ranges.notes
    notes += _static_notes(fates, statistics) + _reconstruct(module, fates, recipe, statistics, work)
    maintained = maintain(module, leaves, recipe.temporal, statistics, seed=work.seed, progress=work.progress)
    fates |= {name: _Fate(because=why) for name, why in maintained.left.items() if name in fates}
    idle = {own: name for name, own in basis.own_names.items() if fates[name].layer is None}
    detach_(module, idle)
    reports = _reports(module, layers, fates, basis, maintained, idle)
    transforms = transform_forms(module)
    forms = {name: fate.form for name, fate in fates.items() if fate.form is not None} | dict(maintained.forms)
    replace_layers(module, {**_quantized(fates), **maintained.replacements})
    bind(module, MomentHolder())
    plan = maintained.plan if needs_moment(module) else None
    work.seconds = time.monotonic() - started + work.stages.resumed_seconds
    report = Report(layers=reports, notes=notes + maintained.notes)
    return Quantization(report, forms, transforms, plan, maintained.fallback)


def temporal_leaves(
    module: nn.Module, recipe: Recipe, statistics: Statistics
) -> tuple[tuple[TemporalLeaf, ...], tuple[str, ...]]:
    """The temporal leaves that the recipe treats apart, and what to note; none where it treats them as all others."""
    if recipe.temporal.maintenance == "none" and recipe.scope == "all":
        return (), ()
    try:
        return discover(module, statistics.calls[0]), ()
    except UnknownStructure as error:
        scope = "nothing is quantized, as the recipe's scope is temporal layers and none is known"
        told = scope if recipe.scope == "temporal" else "temporal layers are treated as all others"
        return (), (f"{told}: {error}",)


def _first_fate(name: str, layer: FloatLayer, basis: Basis, temporal: set[str]) -> _Fate:
    recipe, seen = basis.recipe, basis.statistics.layers[name]
    decision = basis.decide(name)
    if name in temporal and recipe.temporal.maintenance != "none":
        return _Fate(because="temporal")  # `maintain` decides, and knows why
    if name not in temporal and recipe.scope == "temporal":
        return _Fate(because="the recipe's scope is temporal layers")
    if decision.scheme is None:
        return _Fate(because=decision.because)
    if seen.inputs.total == 0:
        return _Fate(because="it never ran while calibrating")
    if seen.inputs.low == seen.inputs.high == 0.0:
        return _Fate(because="its input was always zero while calibrating")
    return _Fate(*round_layer(name, layer, decision.scheme, basis), scheme=decision.scheme)


def _quantized(fates: Mapping[str, _Fate]) -> dict[str, Quantized]:
    return {name: fate.layer for name, fate in fates.items() if fate.layer is not None}


def _static_notes(fates: Mapping[str, _Fate], statistics: Statistics) -> tuple[str, ...]:
    """What to note of layers whose input scale does not follow time although the recipe says so."""
    static: dict[str, list[str]] = {}
    for name, fate in fates.items():
        if fate.scheme is not None and fate.form is not None:
            static.setdefault(why_static(fate.scheme, fate.form, statistics.layers[name]), []).append(name)
    return tuple(
        f"layers with one input scale for all times, although the recipe asks for more: {counted(names)}; {why}"
        for why, names in static.items()
        if why
    )


def _reconstruct(
    module: nn.Module, fates: Mapping[str, _Fate], recipe: Recipe, statistics: Statistics, work: Work
) -> tuple[str, ...]:
    """Has AdaRound choose the integers, where the recipe says so; what is to note of it."""
    if not recipe.learns:
        return ()
    return reconstruct(
        module,
        _quantized(fates),
        statistics.samples,
        recipe.rounding,
        seed=work.seed,
        progress=work.progress,
        stages=work.stages,
        example=statistics.calls[0],
    ).notes


def _spare_sensitive(
    module: nn.Module, layers: Mapping[str, FloatLayer], fates: dict[str, _Fate], basis: Basis
) -> None:
    """Keeps layers that are worth it float, or gives them finer weights; notes each layer's squared effect."""
    room, statistics = basis.recipe.sensitive, basis.statistics
    if room.macs == 0 or room.bytes == 0:
        return
    effects = output_errors(module, _quantized(fates), statistics)
    macs = sum(seen.macs for seen in statistics.layers.values())
    size = float_bytes(module.state_dict().values())
    costs = {
        name: (statistics.layers[name].macs / macs, float_bytes(layers[name].parameters()) / size) for name in effects
    }
    total = sum(effects.values())
    spared = set(worth_keeping(effects, costs, (room.macs, room.bytes), room.least))
    for name, effect in effects.items():
        fates[name] = replace(fates[name], effect=effect)
        if name in spared:
            part, cost = 100 * effect / total if total else 0.0, 100 * costs[name][0]
            because = f"sensitive: {part:.1f}% of the output's squared error for {cost:.1f}% of the multiply-adds"
            fates[name] = _spared(name, layers[name], fates[name], because, basis)


def _spared(name: str, layer: FloatLayer, fate: _Fate, because: str, basis: Basis) -> _Fate:
    """What becomes of a sensitive layer."""
    scheme, weights = basis.decide(name).scheme, basis.recipe.sensitive.weights
    if weights is None or scheme is None:
        return _Fate(because=because, effect=fate.effect)
    finer = scheme.model_copy(update={"weights": weights})
    return _Fate(*round_layer(name, layer, finer, basis), because, fate.effect, finer)


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
    basis: Basis,
    maintained: Maintained,
    idle: Mapping[str, str],
) -> tuple[LayerReport, ...]:
    """What became of every module that owns weights, in order. Called while the module is still float.

    `idle`: layers that stand behind no input transform any more, and the names that they had there.
    """
    temporal = temporal_reports(maintained)
    reports = []
    for name, owner, tensors in owners_of_weights(module):
        key = idle.get(name, name)
        told = _report(key, layers[key], fates[key], basis) if key in layers else None
        told = told or _without_form(name, owner, tensors)
        reports.append(told.model_copy(update={"name": name, **temporal.get(name, {})}))
    return tuple(reports)


def _report(name: str, layer: FloatLayer, fate: _Fate, basis: Basis) -> LayerReport:
    before, statistics = float_bytes(layer.parameters(recurse=False)), basis.statistics
    told = LayerReport(
        name=name,
        kind="linear" if isinstance(layer, nn.Linear) else "conv2d",
        bytes_before=before,
        bytes_after=before,
        macs=statistics.layers[name].macs // statistics.rows,
        output_error=None if fate.effect is None else math.sqrt(fate.effect),
    )
    if fate.layer is None or fate.scheme is None or fate.form is None:
        return told.model_copy(update={"kept_float_because": fate.because})
    return told.model_copy(
        update={
            "scheme": text_of(fate.scheme, fate.form) + (f" ({fate.because})" if fate.because else ""),
            "bytes_after": buffer_bytes(fate.layer),
            "error": predicted_error(name, layer, fate.layer, basis),
        }
    )


def _without_form(name: str, owner: nn.Module, tensors: list[Tensor]) -> LayerReport:
    if isinstance(owner, InputTransform):
        size, why = buffer_bytes(owner), "computed in float, before the layers that are fed what it makes"
        return LayerReport(name=name, kind="transform", bytes_before=0, bytes_after=size, kept_float_because=why)
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
