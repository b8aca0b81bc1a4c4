"""What is measured before a recipe is tuned: layers at all widths, ways to round their inputs, storages of tables.

Knows modules and statistics, not how pictures come about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from quant.calibrate import LayerStatistics, Statistics
from quant.layers import FloatLayer, Quantized, parts_of, quantizable_layers
from quant.nearest import Basis, round_layer
from quant.quantize import temporal_leaves
from quant.recipe import Activations, Recipe, Scheme, Storage, Weights
from quant.rotation.attach import own_names
from quant.temporal.discover import TemporalLeaf, UnknownStructure
from quant.temporal.maintain import hoisted
from quant.temporal.plan import make_plan
from quant.temporal.program import TemporalProgram
from quant.temporal.tables import build_tables, decode, encode
from quant.tuning.effects import Disturbance, Rounded, Subject, of_rows
from quant.tuning.formats import STORAGES, WAYS, WIDTHS, Way, parts_count

NEARLY_EXACT = Weights(bits=8, range="max")
"""Of layers that stand for what rounding their inputs does."""


@dataclass(frozen=True)
class Prepared:
    """What effects are measured of.

    Attributes:
        subject: for the meter.
        names: layer as the module has it now to the name that rules know.
        parts: in how many parts a layer's inputs are rounded.
        table_bytes: what tables of temporal features take in each storage; empty where there are none.
    """

    subject: Subject
    names: Mapping[str, str]
    parts: Mapping[str, int]
    table_bytes: Mapping[Storage, int]


FINE = 6
"""Bits from which on a search for the range of least error finds little, and is left out."""


def prepare(module: nn.Module, recipe: Recipe, statistics: Statistics, ways: Sequence[Way]) -> Prepared:
    """All formats of a float module's layers, those aside that turn the timestep into features and get tables.

    Raises:
        QuantError: a weight holds NaN or infinity.
    """
    leaves, _ = temporal_leaves(module, recipe, statistics)
    own = own_names(module)
    basis = Basis(recipe, statistics, own_names=own)
    temporal = {leaf.name for leaf in leaves}
    layers = {
        name: layer
        for name, layer in quantizable_layers(module).items()
        if name not in temporal and _ran(statistics.layers[name])
    }
    inputs: dict[str, dict[str, Quantized]] = {
        way: {name: _of_inputs(name, layer, WAYS[way], basis) for name, layer in layers.items()}
        for way in ways
        if way != "float"
    }
    tables = dict(_tables(module, leaves, statistics))
    return Prepared(
        Subject(
            module,
            layers,
            {name: _widths(name, layer, basis) for name, layer in layers.items()},
            inputs,
            {storage: disturbances for storage, (_, disturbances) in tables.items()},
            statistics.schedule,
        ),
        {name: own.get(name, name) for name in layers},
        {name: parts_count(statistics.splits, name) for name in layers},
        {storage: size for storage, (size, _) in tables.items()},
    )


def _ran(seen: LayerStatistics) -> bool:
    return seen.inputs.total > 0 and not seen.inputs.low == seen.inputs.high == 0.0


def _of_inputs(name: str, layer: FloatLayer, activations: Activations, basis: Basis) -> Quantized:
    return round_layer(name, layer, Scheme(weights=NEARLY_EXACT, activations=activations), basis)[0]


def _widths(name: str, layer: FloatLayer, basis: Basis) -> dict[int, Rounded]:
    found = {}
    for bits in WIDTHS:
        weights = Weights(bits=bits, range="mse" if bits < FINE else "max")
        scheme = Scheme(weights=weights, activations=WAYS["float"])
        parts = parts_of(round_layer(name, layer, scheme, basis)[0])
        found[bits] = Rounded(tuple(part.integers for part in parts), tuple(part.scales for part in parts))
    return found


def _tables(
    module: nn.Module, leaves: Sequence[TemporalLeaf], statistics: Statistics
) -> Iterator[tuple[Storage, tuple[int, dict[str, Disturbance]]]]:
    """Bytes of all tables in each storage, and what storing them so does to each layer's output."""
    example = statistics.calls[0]
    names = [name for name in example.rows if example.role(name) == "time"]
    if not leaves or len(names) != 1 or not statistics.schedule:
        return
    times = {names[0]: statistics.schedule}
    try:
        program = TemporalProgram(module, leaves)
        plan = make_plan(program, leaves, example, times, choices=hoisted(leaves, statistics.calls))
        tabled = {one.name: one for one in plan.lookups if one.storage is not None}
        widths = {name: one.width for name, one in tabled.items()}
        exact = build_tables(program, example, times, widths, rows=1) if widths else {}
    except UnknownStructure:
        return
    for storage in STORAGES:
        stored = {name: encode(values, storage, tabled[name].chunks) for name, values in exact.items()}
        size = sum(tensor.nbytes for buffers in stored.values() for tensor in buffers.values())
        back = {
            name: decode(one["table"], one.get("table_scale"), one.get("table_offset"), widths[name])
            for name, one in stored.items()
        }
        yield storage, (size, {name: of_rows(back[name] - torch.as_tensor(exact[name])) for name in exact})
