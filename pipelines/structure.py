"""What of a denoiser time decides: its temporal modules with class, size and the bytes of tables in their place.

Reads configs, never weights, of the denoiser. Must not know how anything is printed or quantized.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

import quant
from jobs.profile import Defaults
from pipelines.calibrate import runner
from pipelines.examples import EXAMPLES, example_call
from pipelines.load import load_components, load_skeleton
from pipelines.sizes import PUBLIC
from pipelines.skeletons import fake_weights
from pipelines.subjects import asks_of
from quant.prepare import first_call as quant_first_call
from quant.recipe import Storage
from quant.temporal.discover import Discovery, TemporalLeaf, examine
from quant.temporal.tables import chunk_width, chunks_of, table_bytes

STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8", "int4")
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One temporal module, or, where `count` is more, that many alike whose names differ in numbers only.

    Attributes:
        name: dotted name; numbers that differ are "*".
        kind: its class's name.
        category: E0 (the timestep alone), E1 (request constants too) or E2 (pooled text too).
        frontier: whether anything that is not temporal reads its output: then a table can stand in its place.
        count: how many modules.
        parameters: of all of them; `bytes` are theirs in float32.
        table: bytes of all their tables for one step and one value of the request's constants, by storage; of class
            E2, for one request and branch. Empty where no table is needed.
    """

    name: str
    kind: str
    category: str
    frontier: bool
    count: int
    parameters: int
    bytes: int
    table: dict[Storage, int]


@dataclass(frozen=True, slots=True)
class Structure:
    """A denoiser's temporal structure.

    Attributes:
        kind: the denoiser's class.
        parameters: of the whole denoiser; `bytes` are its in float32.
        modules: the temporal ones, each by itself.
        temporal_parameters: of all of them.
        temporal_share: of the denoiser's parameters, 0..1.
        table: bytes of all tables for one step, by storage.
        unknown: why nothing is known of time, where the data flow could not be followed; else empty.
    """

    kind: str
    parameters: int
    bytes: int
    modules: tuple[ModuleRow, ...]
    temporal_parameters: int
    temporal_share: float
    table: dict[Storage, int]
    unknown: str


def examine_folder(folder: Path, defaults: Defaults) -> tuple[nn.Module, Discovery]:
    """The denoiser in a diffusers folder with fake weights, its own unread, and what time decides of it.

    Where no example call is known for its class, the rest of the pipeline is loaded and runs until it calls its
    denoiser once, by the model's defaults.

    Raises:
        UnsupportedModel: the folder holds no pipeline that we can load.
    """
    module = fake_weights(load_skeleton(folder))
    known = type(module).__name__ in EXAMPLES
    return module, examine(module, example_call(module) if known else first_call(folder, defaults))


def examine_public(name: str) -> tuple[nn.Module, Discovery]:
    """A public model's denoiser (a key of `PUBLIC`) at its full size with fake weights, and what time decides of it.

    Raises:
        KeyError: no such model is known.
    """
    public = PUBLIC[name]
    module = public.build()
    return module, examine(module, example_call(module, per_token=public.per_token))


def structure_of(module: nn.Module, found: Discovery) -> Structure:
    """What was found of a module's temporal leaves, with sizes."""
    frontier = [leaf.width for leaf in found.leaves if leaf.frontier]
    interior = [leaf.width for leaf in found.leaves if not leaf.frontier]
    piece = chunk_width(frontier, interior) if frontier else 1
    rows = tuple(_row(leaf, piece) for leaf in found.leaves)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    temporal = sum(row.parameters for row in rows)
    return Structure(
        kind=type(module).__name__,
        parameters=parameters,
        bytes=FLOAT_BYTES * parameters,
        modules=rows,
        temporal_parameters=temporal,
        temporal_share=temporal / max(1, parameters),
        table=_summed(rows),
        unknown=found.unknown,
    )


def grouped(rows: Sequence[ModuleRow]) -> list[ModuleRow]:
    """Modules alike but for numbers in their names as one row each, in order of first appearance."""
    groups: dict[tuple[object, ...], list[ModuleRow]] = {}
    for row in rows:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", row.name)
        groups.setdefault((pattern, row.kind, row.category, row.frontier, *row.table.values()), []).append(row)
    return [_merged(members) for members in groups.values()]


def first_call(folder: Path, defaults: Defaults) -> quant.Call:
    """The first call that a pipeline makes of its denoiser, one row of it: a picture of anything, by the defaults.

    Raises:
        UnsupportedModel: the folder holds no pipeline that we can load.
    """
    asks = asks_of(folder)
    subjects = ["a picture"] if asks.kind == "prompt" else asks.spread(1)
    return quant_first_call(runner(load_components(folder), subjects, defaults))


def _row(leaf: TemporalLeaf, piece: int) -> ModuleRow:
    chunks = chunks_of(leaf.width, piece)
    table = {storage: table_bytes(storage, 1, leaf.width, chunks) for storage in STORAGES} if leaf.frontier else {}
    size = FLOAT_BYTES * leaf.parameters
    return ModuleRow(leaf.name, leaf.kind, leaf.category, leaf.frontier, 1, leaf.parameters, size, table)


def _common(names: Sequence[str]) -> str:
    """Names of equally many parts as one, with "*" for the parts that differ."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)


def _merged(rows: Sequence[ModuleRow]) -> ModuleRow:
    first = rows[0]
    return ModuleRow(
        name=_common([row.name for row in rows]),
        kind=first.kind,
        category=first.category,
        frontier=first.frontier,
        count=len(rows),
        parameters=sum(row.parameters for row in rows),
        bytes=sum(row.bytes for row in rows),
        table=_summed(rows) if first.frontier else {},
    )


def _summed(rows: Sequence[ModuleRow]) -> dict[Storage, int]:
    return {storage: sum(row.table.get(storage, 0) for row in rows) for storage in STORAGES}
