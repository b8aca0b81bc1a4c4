"""Rotates and smooths the inputs of a float module's layers by a recipe, in place, before calibration. Knows no model.

The module computes the same as before: what is done to an input is taken back in weights. Where the input comes from
weights, it is done there and costs nothing (fold.py); elsewhere the layer gets an input transform (attach.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.errors import QuantError
from quant.layers import FloatLayer, quantizable_layers
from quant.metrics import relative_error
from quant.recipe import Recipe
from quant.rotation.bundle import Bundle, bundles, carry_out_
from quant.rotation.channels import ChannelObserver, ChannelStatistics, outlier_ratio
from quant.rotation.choose import Chooser
from quant.rotation.fold import Folds, find_folds
from quant.rotation.readings import read_strands
from quant.rotation.report import LayerRotation, RotationReport
from quant.rotation.transform import InputTransform
from quant.samples import own_copy
from quant.splits import find_splits
from quant.temporal.discover import Discovery, examine

Answer = Callable[[Call], Tensor]

CHANGED = 1e-4
"""A relative difference of the output that no order of float32 additions explains."""
_CALLS = 2
"""Rows of calls on which folding is tried."""
_SAMPLES = 32
"""Rows of each layer's input that are kept of each slot. They take memory: a row for each layer of a large model has
megabytes in all.
"""


def rotates(recipe: Recipe) -> bool:
    """Whether a recipe changes the float module: not where weights are rounded for each range, which rotates there."""
    wanted = recipe.rotation.method != "none" or recipe.smoothing.method != "none"
    return wanted and recipe.weights.ranges == "shared" and recipe.scope == "all"


def rotate_(module: nn.Module, run: Callable[[Answer], object], recipe: Recipe, *, seed: int = 0) -> RotationReport:
    """Smooths and rotates the inputs of all layers that the recipe quantizes and names, in place.

    Temporal layers, and those that rules keep float, are fed what they were fed. Nothing is done, and `run` not called,
    where the recipe asks for nothing, or rounds weights for each range of time. The same module, run, recipe and seed
    give the same weights.

    Args:
        module: the float model. Layers get an input transform where nothing can be folded: see `transformed_layers`.
        run: `run(answer)` has every call of a typical run answered.
        recipe: its rotation and smoothing, with its rules, bits and grids.
        seed: of signs, samples and searches.

    Raises:
        CalibrationError: the module was never called, or a layer was fed NaN or infinity.
        QuantError: weights are not float32; or the changed module does not compute the same, as where numbers overflow.
    """
    if not rotates(recipe):
        return RotationReport()
    if strange := {parameter.dtype for parameter in module.parameters()} - {torch.float32}:
        raise QuantError(f"a module of {', '.join(map(str, strange))} is not rotated: that takes float32 weights")
    seen, calls = _observed(module, run, seed)
    expected = [_output(module, call) for call in calls]
    task = _Task.of(module, recipe, seen, calls, seed)
    report = task.carry_out_()
    for call, truth in zip(calls, expected, strict=True):
        error = relative_error(_output(module, call), truth)
        if not error <= CHANGED:
            raise QuantError(f"rotated, the model computes something else: relative difference {error:.2g}")
    return report


def _observed(module: nn.Module, run: Callable[[Answer], object], seed: int) -> tuple[ChannelStatistics, list[Call]]:
    """What channels were fed, and single rows of the first and the last call."""
    observer, kept = ChannelObserver(module, seed, _SAMPLES), list[Call]()

    def answer(call: Call) -> Tensor:
        row = torch.tensor([0 if not kept else call.count - 1])
        kept[min(len(kept), _CALLS - 1) :] = [own_copy(call.take(row))]
        return observer.answer(call)

    with observer.watching():
        run(answer)
    return observer.finished(), kept


def _output(module: nn.Module, call: Call) -> Tensor:
    with torch.no_grad():
        return call_module(module, call)


@dataclass(frozen=True)
class _Task:
    """All that rotating a module works with.

    Attributes:
        left: why a layer is fed what it was fed, of those that the recipe quantizes.
        folds: what can be folded, and why more cannot.
        examined: what is known of temporal layers.
    """

    module: nn.Module
    chooser: Chooser
    left: Mapping[str, str]
    folds: Folds
    examined: Discovery

    @classmethod
    def of(cls, module: nn.Module, recipe: Recipe, seen: ChannelStatistics, calls: Sequence[Call], seed: int) -> _Task:
        """Finds out which layers are to be treated, and where their inputs come from."""
        layers, readings, examined = (
            quantizable_layers(module),
            read_strands(module, calls[0]),
            examine(module, calls[0]),
        )
        schemes = {name: scheme for name in layers if (scheme := recipe.decide(name).scheme) is not None}
        temporal = {leaf.name for leaf in examined.leaves}
        splits = find_splits(module, calls[0]) if recipe.split_skips else {}
        left = {name: why for name in schemes if (why := _why_left(name, layers[name], seen, temporal, splits))}
        folds = find_folds(module, readings, calls, seed) if recipe.rotation.fold else Folds((), {})
        chooser = Chooser(layers, schemes, seen, readings, recipe, seed)
        return cls(module, chooser, left, _without_coarse(folds, recipe, temporal), examined)

    def carry_out_(self) -> RotationReport:
        """Chooses for every layer and changes the module."""
        chooser = self.chooser
        treated = [name for name in chooser.schemes if name not in self.left]
        groups = bundles(treated, self.folds.found, chooser)
        for bundle in groups:
            bundle.choose(chooser)
        rows = {name: chooser.seen.layers[name].rows for name in treated}
        whole = {name: bundle.transform(name, chooser) for bundle in groups for name in bundle.names}
        online = carry_out_(self.module, groups, chooser)
        told = {name: self._told(name, bundle, online) for bundle in groups for name in bundle.names}
        total = sum(reading.macs for reading in chooser.readings.layers.values())
        unknown = self.examined.unknown
        return RotationReport(
            layers=tuple(
                told.get(name) or LayerRotation(name=name, because=self.left[name]) for name in chooser.schemes
            ),
            outliers_before=outlier_ratio({name: own.abs().amax(0) for name, own in rows.items()}),
            outliers_after=outlier_ratio({name: whole[name](own).abs().amax(0) for name, own in rows.items()}),
            online_share=sum(layer.macs for layer in told.values()) / max(1.0, total),
            notes=(f"temporal layers are rotated as all others: {unknown}",) if unknown else (),
        )

    def _told(self, name: str, bundle: Bundle, online: Mapping[str, InputTransform]) -> LayerRotation:
        told = bundle.told(name, self.chooser, self.folds.refused)
        if name not in online:
            return told
        leader = next(other for other, transform in online.items() if transform is online[name])
        if leader != name:
            return told.model_copy(update={"like": leader})
        reading = self.chooser.readings.layers.get(name)
        return told.model_copy(update={"macs": round(online[name].macs * (reading.tokens if reading else 0))})


def _why_left(
    name: str, layer: FloatLayer, seen: ChannelStatistics, temporal: Collection[str], splits: Collection[str]
) -> str:
    """Why a layer is fed what it was fed; empty where it is treated."""
    if name in temporal:
        return "temporal"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "a grouped convolution: channels of several groups cannot be mixed"
    if not seen.layers[name].ran:
        return "it was never fed anything but zeros while calibrating"
    return "its input is concatenated, and each part has a grid of its own" if name in splits else ""


def _without_coarse(folds: Folds, recipe: Recipe, temporal: Collection[str]) -> Folds:
    """Without factors folded into temporal layers whose features are stored in integers, or few bits: 1 + scale would
    be divided by factors that differ a lot between channels, and small ones drown in the table's grid.
    """
    storage = recipe.temporal.storage
    if recipe.temporal.maintenance not in ("cache", "select") or storage == "float32":
        return folds
    coarse = [fold for fold in folds.found if set(fold.owners) & set(temporal)]
    why = f"its scale comes from a table of {storage}, too coarse to take up factors"
    told = {name: why for fold in coarse for name in fold.layers}
    return Folds(tuple(fold for fold in folds.found if fold not in coarse), {**folds.refused, **told})
