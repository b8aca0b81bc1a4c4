"""What becomes of each temporal layer of a denoiser, as data for an artifact's manifest. Knows no tables' values.

Frontier layers are looked up in tables (`cache`), computed once for each request (`hoist`), chosen piece by piece from
table and quantized layer (`select`), quantized (`tib`), or stay float. Layers that only dropped ones read are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from quant.backends.call import Call
from quant.recipe import Storage
from quant.temporal.discover import Category, TemporalLeaf
from quant.temporal.program import TemporalProgram
from quant.temporal.select import Selection
from quant.temporal.shapes import Shape, leaf_shapes
from quant.temporal.tables import chunk_width, chunks_of, table_bytes

_STRICT = ConfigDict(extra="forbid", frozen=True)

Strategy = Literal["cache", "hoist", "select", "tib", "float"]
"""What becomes of a frontier layer; see the head of this file."""

CUT: frozenset[Strategy] = frozenset(("cache", "hoist"))
"""Strategies that need nothing of the layer, nor of those before it, while the denoiser runs."""


class Errors(BaseModel):
    """Errors of features against float ones over slots and chunks: relative L2 and 1 - cosine, worst and mean."""

    model_config = _STRICT

    relative_worst: float
    relative_mean: float
    cosine_worst: float
    cosine_mean: float

    @classmethod
    def of(cls, relative: Tensor, cosine: Tensor) -> Errors:
        """The summary of `chunk_errors`."""
        return cls(
            relative_worst=float(relative.max()),
            relative_mean=float(relative.mean()),
            cosine_worst=float(cosine.max()),
            cosine_mean=float(cosine.mean()),
        )


class Lookup(BaseModel):
    """One frontier layer whose features come from a table or with each request."""

    model_config = _STRICT

    name: str
    category: Category
    strategy: Literal["cache", "hoist", "select"]
    width: int = Field(description="Numbers for one timestep.")
    offset: int = Field(description="Where they begin in a moment's features.")
    last: int = Field(description="Size of the output's last axis.")
    spread: bool = Field(False, description="Whether the same vector serves several rows of the layer's input.")
    by_index: bool = Field(False, description="Whether the layer's input has no feature axis.")
    chunks: int = Field(1, description="Equal pieces of the width.")
    storage: Storage | None = Field(None, description="None: no table.")
    errors: Errors | None = Field(None, description="Of the table as stored, or as selected.")
    chosen: float | None = Field(None, description="Of a selected layer: share of slots and chunks that it computes.")


class Stub(BaseModel):
    """One layer that is dropped because only dropped ones read it."""

    model_config = _STRICT

    name: str
    category: Category
    last: int
    by_index: bool = False


class KeptLeaf(BaseModel):
    """One temporal layer that stays, float or quantized, and why."""

    model_config = _STRICT

    name: str
    reason: str


class TemporalPlan(BaseModel):
    """What holds of time in an artifact.

    Attributes are described at their fields. A row of a call is known to tables if its time is in the schedule and its
    constants are `constants`.
    """

    model_config = _STRICT

    time: str = Field(description="Argument that holds the timestep.")
    schedule: tuple[float, ...] = Field(min_length=1, description="Timesteps as the module receives them, by slot.")
    times: dict[str, tuple[float, ...]] = Field({}, description="Further arguments of time, by slot.")
    constants: dict[str, tuple[float, ...]] = Field(
        {}, description="Values of constants that tables of class E1 hold for."
    )
    pooled: tuple[str, ...] = ()
    leaves: tuple[TemporalLeaf, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    stubs: tuple[Stub, ...] = ()
    kept: tuple[KeptLeaf, ...] = ()
    selection: Selection | None = Field(
        None, description="Why layers are `select`, `cache` or `tib`, if it was chosen."
    )
    table_bytes: int = Field(0, description="Of all tables as stored.")
    parameters: int = Field(0, description="Of all temporal layers.")
    freed: int = Field(0, description="Parameters that are gone: no call needs them.")
    hoisted: int = Field(0, description="Parameters out of the denoiser that each new request needs once.")

    @model_validator(mode="after")
    def _schedule_is_sound(self) -> TemporalPlan:
        if len(set(self.schedule)) != len(self.schedule) or not all(map(math.isfinite, self.schedule)):
            raise ValueError("a schedule holds finite timesteps, each once")
        if any(len(values) != len(self.schedule) for values in self.times.values()):
            raise ValueError("each argument of time has a value for each slot")
        return self

    @property
    def width(self) -> int:
        """F: numbers of a moment's features for one timestep."""
        return sum(one.width for one in self.lookups)

    @property
    def all_times(self) -> dict[str, tuple[float, ...]]:
        """Each argument of time to its value at each slot, the main one first."""
        return {self.time: self.schedule, **self.times}


def make_plan(
    program: TemporalProgram,
    leaves: Sequence[TemporalLeaf],
    example: Call,
    times: Mapping[str, Sequence[float]],
    *,
    storage: Storage = "float32",
    storages: Mapping[str, Storage] | None = None,
    choices: Mapping[str, Strategy] | None = None,
) -> TemporalPlan:
    """The plan for a denoiser's temporal layers.

    Args:
        program: its weights are needed to see whether rows of outputs follow rows of time.
        leaves: as discovered with calls like the example.
        example: a call; tables of class E1 hold for the constants of its first row.
        times: for each argument of time its value at each slot, the main one first; each slot's once.
        storage: of tables.
        storages: of some layers' tables by name, instead.
        choices: strategy of frontier layers by name; without one E0 and E1 are cached, E2 is hoisted.

    Raises:
        UnknownStructure: see `TemporalProgram.run`.
        QuantError: a feature is NaN or infinite.
    """
    time, *others = times
    shapes = leaf_shapes(program, leaves, example, times)
    sources = {call.name: call.sources for call in program.leaf_calls(example)}
    strategies = _strategies(leaves, shapes, choices or {})
    cut = {name for name, (strategy, _) in strategies.items() if strategy in CUT}
    needed = _behind(strategies.keys() - cut, sources, stop=cut)
    lookups = _lookups(leaves, shapes, strategies, storage, storages or {})
    stubs = tuple(
        Stub(name=leaf.name, category=leaf.category, last=shapes[leaf.name].last, by_index=shapes[leaf.name].by_index)
        for leaf in leaves
        if not leaf.frontier and leaf.name not in needed and not shapes[leaf.name].reason
    )
    hoisting = {one.name for one in lookups if one.strategy == "hoist"}
    hoisting |= _behind(hoisting, sources)
    gone = {one.name for one in lookups if one.strategy != "select"} | {stub.name for stub in stubs}
    parameters = {leaf.name: leaf.parameters for leaf in leaves}
    return TemporalPlan(
        time=time,
        schedule=tuple(times[time]),
        times={name: tuple(times[name]) for name in others},
        constants=_constants(example),
        pooled=tuple(name for name in example.tensors() if example.role(name) == "pooled"),
        leaves=tuple(leaves),
        lookups=lookups,
        stubs=stubs,
        kept=_kept(leaves, shapes, strategies, needed),
        table_bytes=sum(
            table_bytes(one.storage, len(times[time]), one.width, one.chunks) for one in lookups if one.storage
        ),
        parameters=sum(parameters.values()),
        freed=sum(parameters[name] for name in gone - hoisting),
        hoisted=sum(parameters[name] for name in gone & hoisting),
    )


def _strategies(
    leaves: Sequence[TemporalLeaf], shapes: Mapping[str, Shape], choices: Mapping[str, Strategy]
) -> dict[str, tuple[Strategy, str]]:
    """Frontier layer to what becomes of it, and why where it is kept."""
    found: dict[str, tuple[Strategy, str]] = {}
    for leaf in leaves:
        if not leaf.frontier:
            continue
        choice: Strategy = choices.get(leaf.name, "hoist" if leaf.category == "E2" else "cache")
        reason = shapes[leaf.name].reason
        if reason and choice != "tib":
            found[leaf.name] = ("float", reason)
        else:
            told = {"tib": "it is quantized", "float": "the recipe keeps it", "select": "it is selected where better"}
            found[leaf.name] = (choice, told.get(choice, ""))
    return found


def _behind(names: Collection[str], sources: Mapping[str, frozenset[str]], stop: Collection[str] = ()) -> set[str]:
    """Leaves whose outputs reach the arguments of these, through any number of others but those in `stop`."""
    found: set[str] = set()
    todo = set(names)
    while todo:
        todo = {source for name in todo for source in sources.get(name, ())} - found - set(stop)
        found |= todo
    return found


def _lookups(
    leaves: Sequence[TemporalLeaf],
    shapes: Mapping[str, Shape],
    strategies: Mapping[str, tuple[Strategy, str]],
    storage: Storage,
    storages: Mapping[str, Storage],
) -> tuple[Lookup, ...]:
    frontier = {leaf.name for leaf in leaves if leaf.frontier}
    widths = {name: shape.width for name, shape in shapes.items()}
    piece = chunk_width([widths[n] for n in widths if n in frontier], [widths[n] for n in widths if n not in frontier])
    found: list[Lookup] = []
    offset = 0
    for leaf in leaves:
        strategy, _ = strategies.get(leaf.name, ("float", ""))
        if strategy in ("tib", "float"):
            continue
        shape = shapes[leaf.name]
        fields: dict[str, Any] = dict(zip(("last", "width", "spread", "by_index"), shape[:4], strict=True))
        found.append(
            Lookup(
                name=leaf.name,
                category=leaf.category,
                strategy=strategy,
                offset=offset,
                chunks=chunks_of(shape.width, piece),
                storage=None if strategy == "hoist" else storages.get(leaf.name, storage),
                **fields,
            )
        )
        offset += shape.width
    return tuple(found)


def _kept(
    leaves: Sequence[TemporalLeaf],
    shapes: Mapping[str, Shape],
    strategies: Mapping[str, tuple[Strategy, str]],
    needed: set[str],
) -> tuple[KeptLeaf, ...]:
    found = []
    for leaf in leaves:
        strategy, reason = strategies.get(leaf.name, ("cache", ""))
        if strategy in ("tib", "float"):
            found.append(KeptLeaf(name=leaf.name, reason=reason))
        elif leaf.name in needed and not leaf.frontier:  # one that is selected has its layer beside its table
            found.append(KeptLeaf(name=leaf.name, reason="a layer that is kept reads it"))
        elif not leaf.frontier and shapes[leaf.name].reason:
            found.append(KeptLeaf(name=leaf.name, reason=shapes[leaf.name].reason))
    return tuple(found)


def _constants(example: Call) -> dict[str, tuple[float, ...]]:
    constants = {name: tensor for name, tensor in example.tensors().items() if example.role(name) == "constant"}
    first = {name: tensor[0] if name in example.rows else tensor for name, tensor in constants.items()}
    return {name: tuple(tensor.double().flatten().tolist()) for name, tensor in first.items()}
