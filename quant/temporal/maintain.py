"""Does with a module's temporal layers what a recipe says: quantize, cache, or the better of the two. Knows no model.

The three strategies of "Temporal Feature Matters" (Huang et al., TPAMI 2025): TIB-based maintenance (tiar.py,
scales.py), cache-based maintenance (tables.py, layers.py), disturbance-aware selection (select.py). What was chosen
is a plan (plan.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.calibrate import Statistics
from quant.errors import QuantError
from quant.grid import to_integers, weight_scales
from quant.layers import InputGrid, QuantizedLinear
from quant.recipe import FLOAT_BITS, Temporal
from quant.report import LayerForm
from quant.temporal.discover import TemporalLeaf, UnknownStructure
from quant.temporal.layers import StepwiseLinear, cut_leaves
from quant.temporal.plan import Errors, Strategy, TemporalPlan, make_plan
from quant.temporal.program import TemporalProgram
from quant.temporal.select import Selection, candidate, select
from quant.temporal.tables import build_tables, call_at, chunk_errors, decode, encode
from quant.temporal.tiar import TibResult, reconstruct_tib

Progress = Callable[[str, int, int], None]

FALLBACK_BITS = 8
"""Of the weights of layers stored apart: nearly exact, and in memory only while somebody needs them."""


class Kept(NamedTuple):
    """A temporal layer that is stored apart; `form` is None where it is float."""

    layer: nn.Module
    form: LayerForm | None


@dataclass(frozen=True)
class Maintained:
    """What became of temporal layers.

    Attributes:
        plan: None where there is no timestep to speak of.
        replacements: what takes the place of each layer.
        forms: of layers that stay as quantized ones.
        fallback: layers stored apart, for what no table knows.
        left: why a temporal layer stays float, by name, of those that the recipe treats apart.
        notes: for people.
    """

    plan: TemporalPlan | None = None
    replacements: Mapping[str, nn.Module] = field(default_factory=dict)
    forms: Mapping[str, LayerForm] = field(default_factory=dict)
    fallback: Mapping[str, Kept] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Task:
    """All that the strategies work with."""

    module: nn.Module
    leaves: tuple[TemporalLeaf, ...]
    settings: Temporal
    example: Call
    times: Mapping[str, tuple[float, ...]]
    program: TemporalProgram
    hoisted: Mapping[str, Strategy]
    seed: int
    progress: Progress

    @property
    def slots(self) -> int:
        return len(next(iter(self.times.values())))

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The temporal leaves that have a quantized form."""
        found = {leaf.name: self.module.get_submodule(leaf.name) for leaf in self.leaves}
        return {name: layer for name, layer in found.items() if type(layer) is nn.Linear}


def maintain(
    module: nn.Module,
    leaves: Sequence[TemporalLeaf],
    settings: Temporal,
    statistics: Statistics,
    *,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> Maintained:
    """What the recipe makes of a float module's temporal leaves. The module is not changed.

    Raises:
        QuantError: a weight or feature is not finite, or a budget cannot be met.
    """
    example = statistics.calls[0]
    names = [name for name in example.rows if example.role(name) == "time"]
    bare = TemporalPlan(time=names[0], schedule=statistics.schedule) if names and statistics.schedule else None
    if not leaves or settings.maintenance == "none":
        timeless = ("no argument is a timestep: nothing follows time",)
        return Maintained(bare, notes=timeless if leaves and bare is None else ())
    if settings.maintenance == "float":
        return replace(_untouched(bare, leaves, "left float by the recipe"), notes=())
    if bare is None:
        return _untouched(bare, leaves, "no argument is a timestep")
    if len(names) > 1:
        return _untouched(bare, leaves, f"there are several timesteps, {', '.join(names)}")
    program = TemporalProgram(module, leaves)
    times, each = {names[0]: statistics.schedule}, hoisted(leaves, statistics.calls)
    task = _Task(module, tuple(leaves), settings, example, times, program, each, seed, progress)
    ways = {"tib": _by_layers, "cache": _by_tables, "select": _by_the_better}
    progress("temporal layers", 0, 1)
    try:
        return _with_reasons(task, ways[settings.maintenance](task))
    except UnknownStructure as error:
        return _untouched(bare, leaves, str(error))
    finally:
        progress("temporal layers", 1, 1)


def _untouched(plan: TemporalPlan | None, leaves: Sequence[TemporalLeaf], why: str) -> Maintained:
    """All temporal layers stay float."""
    left = {leaf.name: f"temporal: {why}" for leaf in leaves}
    return Maintained(plan, left=left, notes=(f"temporal layers stay float: {why}",))


def _with_reasons(task: _Task, made: Maintained) -> Maintained:
    """The same, with why layers stay float that nothing replaces. Ways that quantize any quantize all linears."""
    reasons = dict.fromkeys((leaf.name for leaf in task.leaves), "only linear layers are quantized among these")
    if task.settings.maintenance == "cache" and made.plan is not None:
        reasons = {one.name: one.reason for one in made.plan.kept}
    names = [leaf.name for leaf in task.leaves if leaf.name not in made.replacements]
    return replace(made, left={name: f"temporal: {reasons[name]}" for name in names})


def _by_layers(task: _Task) -> Maintained:
    """TIB-based maintenance: every temporal linear quantized, all reconstructed together."""
    tib = _quantized(task)
    choices: dict[str, Strategy] = {leaf.name: "tib" for leaf in task.leaves if leaf.frontier}
    plan = make_plan(task.program, task.leaves, task.example, task.times, choices=choices)
    return Maintained(plan, tib.layers, dict.fromkeys(tib.layers, tib.form))


def _by_tables(task: _Task) -> Maintained:
    """Cache-based maintenance: tables of the float features; what made them is stored apart, if at all."""
    plan = _tabled(task)
    tables = _tables(task, plan)
    plan = _with_errors(plan, tables)
    return Maintained(plan, cut_leaves(task.module, plan, tables), {}, _fallback(task, plan))


def _by_the_better(task: _Task) -> Maintained:
    """Disturbance-aware selection, among the frontier layers that a table can hold."""
    cached = _tabled(task)
    exact = _tables(task, cached)
    tib = _quantized(task)
    selection = _selection(task, cached, exact, tib)
    chosen = {one.name: one for one in selection.modules}
    strategies: dict[str, Strategy] = {"cache": "cache", "tib": "tib", "both": "select"}
    plan = make_plan(
        task.program,
        task.leaves,
        task.example,
        task.times,
        storage=task.settings.storage,
        storages={name: one.storage for name, one in chosen.items() if one.storage is not None},
        choices={**task.hoisted, **{name: strategies[one.strategy] for name, one in chosen.items()}},
    ).model_copy(update={"selection": selection})
    masks = {name: torch.tensor(one.uses_tib) for name, one in chosen.items() if one.strategy == "both"}
    plan = _with_errors(plan, exact)
    beside = {name: layer for name, layer in tib.layers.items() if name in masks}
    kept = {leaf.name: tib.layers[leaf.name] for leaf in plan.kept if leaf.name in tib.layers}
    replacements = {**kept, **cut_leaves(task.module, plan, exact, masks=masks, inner=beside)}
    forms = dict.fromkeys((*kept, *(f"{name}.inner" for name in beside)), tib.form)
    return Maintained(plan, replacements, forms, _fallback(task, plan))


def _tabled(task: _Task) -> TemporalPlan:
    """The plan with a table wherever one can be."""
    storage = task.settings.storage
    return make_plan(task.program, task.leaves, task.example, task.times, storage=storage, choices=task.hoisted)


def hoisted(leaves: Sequence[TemporalLeaf], calls: Sequence[Call]) -> dict[str, Strategy]:
    """Frontier layers whose features each request needs anew although no text reaches them: of class E1, where requests
    differ in their constants, as in their class. Tables would hold for one of many.
    """
    names = [name for name in calls[0].rows if calls[0].role(name) == "constant"]
    differ = any(not torch.equal(call.rows[name], calls[0].rows[name]) for call in calls for name in names)
    return {leaf.name: "hoist" for leaf in leaves if leaf.frontier and leaf.category == "E1" and differ}


def _tables(task: _Task, plan: TemporalPlan) -> dict[str, Tensor]:
    """Float features of the looked-up layers by name, [slots, width]: one row at a time, as the reference runs."""
    widths = {one.name: one.width for one in plan.lookups if one.storage is not None}
    return build_tables(task.program, task.example, task.times, widths, rows=1) if widths else {}


def _with_errors(plan: TemporalPlan, exact: Mapping[str, Tensor]) -> TemporalPlan:
    """The plan with the error of what is stored of each table."""
    lookups = []
    for one in plan.lookups:
        if one.storage is not None:
            stored = encode(exact[one.name], one.storage, one.chunks)
            back = decode(stored["table"], stored.get("table_scale"), stored.get("table_offset"), one.width)
            relative, cosine = chunk_errors(back, exact[one.name], one.chunks)
            one = one.model_copy(update={"errors": Errors.of(relative, cosine)})
        lookups.append(one)
    return plan.model_copy(update={"lookups": tuple(lookups)})


@dataclass(frozen=True)
class _Tib:
    """The quantized temporal linears by name, the form of all, and the features that they put out."""

    layers: dict[str, QuantizedLinear]
    form: LayerForm
    result: TibResult


def _quantized(task: _Task) -> _Tib:
    """Every temporal linear quantized by the recipe."""
    settings = task.settings
    bits = None if settings.activation_bits == FLOAT_BITS else settings.activation_bits
    form = LayerForm(weight_bits=settings.bits, input_bits=bits)
    if bits is not None and settings.steps == "each":
        form = LayerForm(weight_bits=settings.bits, input_bits=bits, slots=task.slots, kind="stepwise")
    layers = {name: _empty(layer, form) for name, layer in task.linears.items()}
    values = {name: torch.tensor(values, dtype=torch.float64) for name, values in task.times.items()}
    call = call_at(task.example, torch.zeros(task.slots, dtype=torch.int64), values)  # a row for each slot
    result = reconstruct_tib(task.program, layers, [call], settings, seed=task.seed, progress=task.progress)
    return _Tib(layers, form, result)


def _empty(layer: nn.Linear, form: LayerForm) -> QuantizedLinear:
    shape, has_bias = (layer.out_features, layer.in_features), layer.bias is not None
    if form.kind == "stepwise":
        if form.input_bits is None:
            raise QuantError("a temporal layer is to have a grid for each step, but of no number of bits")
        return StepwiseLinear(shape, has_bias, form.input_bits, form.slots, "cpu")
    return QuantizedLinear(shape, has_bias, InputGrid(form.input_bits), "cpu")


def _nearest(layer: nn.Linear, bits: int) -> QuantizedLinear:
    """A linear with its weights rounded to nearest and float inputs."""
    try:
        scales = weight_scales(layer.weight, bits, "mse")
    except ValueError as error:
        raise QuantError(f"a temporal layer cannot be quantized: {error}") from error
    fresh = QuantizedLinear(tuple(layer.weight.shape), layer.bias is not None, InputGrid(None), "cpu")
    fresh.set_weight(to_integers(layer.weight, scales, bits), scales, layer.bias)
    return fresh


def _selection(task: _Task, plan: TemporalPlan, exact: Mapping[str, Tensor], tib: _Tib) -> Selection:
    sizes = {name: sum(buffer.nbytes for buffer in layer.buffers()) for name, layer in tib.layers.items()}
    candidates = [
        candidate(
            one.name,
            exact[one.name],
            tib.result.quantized[one.name].reshape(task.slots, -1)[:, : one.width],
            chunks=one.chunks,
            layer_bytes=sizes.get(one.name, 0),
        )
        for one in plan.lookups
        if one.storage is not None
    ]
    return select(candidates, task.settings, sum(sizes.get(leaf.name, 0) for leaf in task.leaves if not leaf.frontier))


def _fallback(task: _Task, plan: TemporalPlan) -> dict[str, Kept]:
    """The temporal layers, stored apart: for timesteps that tables lack, and for features that each request needs.

    They are rounded to nearest with float inputs: between the steps of a schedule nothing can be calibrated. Layers of
    features that depend on pooled text stay float where tables do, for they are all that a request is served by.
    """
    if not plan.lookups:
        return {}
    exact = task.settings.storage == "float32" and any(one.strategy == "hoist" for one in plan.lookups)
    form = LayerForm(weight_bits=FALLBACK_BITS)
    kept: dict[str, Kept] = {}
    for leaf in task.leaves:
        layer = task.module.get_submodule(leaf.name)
        if type(layer) is nn.Linear and not exact:
            kept[leaf.name] = Kept(_nearest(layer, FALLBACK_BITS), form)
        else:
            kept[leaf.name] = Kept(copy.deepcopy(layer), None)
    return kept
