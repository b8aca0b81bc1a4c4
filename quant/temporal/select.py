"""Chooses for every temporal module, step and chunk between its table and its quantized layers. Must not know models.

Disturbance-aware selection (DAS; "Temporal Feature Matters", Huang et al., TPAMI 2025). For module i and timestep t,
with its float feature g_i(h(t)), that of the quantized layers (TIB) g^_i(h^(t)), and the cached one C_i[t]:

    e_TIB(i, t) = d(g_i(h(t)), g^_i(h^(t))),   e_cache(i, t) = d(g_i(h(t)), C_i[t]),   take the smaller error.

Its text was not at hand: d, and the grain, are ours. d is the relative L2 error; the grain is (module, step, chunk), a
chunk being a piece of a feature with a use of its own (shift, scale, gate). Ours too is the choice under a budget of
bytes (`quant.temporal.knapsack`). Each module has a table of one of the storages or none, and keeps its layers or not,
so that

    sum over modules, steps and chunks of d^2 is least, while
    bytes of tables + bytes of the layers kept + bytes of the chain h, if any module keeps its layers, fit;

where a module has both, the smaller error wins at each step and chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from quant.errors import QuantError
from quant.recipe import Storage, Temporal
from quant.temporal.knapsack import Item, best
from quant.temporal.tables import chunk_errors, decode, encode, table_bytes

STORAGES: Final[tuple[Storage, ...]] = get_args(Storage)
CHOICES: Final = (*STORAGES, "tib")
"""What a cell of the picture can be, in the order of its numbers."""

_STRICT = ConfigDict(extra="forbid", frozen=True)
Matrix = tuple[tuple[float, ...], ...]
"""[slots][chunks]."""
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class ModuleChoice(BaseModel):
    """What was chosen for one temporal module.

    Attributes:
        storage: of its table; None where none is stored.
        uses_tib: [slots][chunks] whether its quantized layers are run there instead of looking up.
        tib_errors, cache_errors: [slots][chunks] relative L2 errors, of the layers and of the table that is stored;
            where none is, of one stored as the recipe says.
        bytes: of its table, and of its layers if it keeps them.
    """

    model_config = _STRICT

    name: str
    strategy: Literal["cache", "tib", "both"]
    storage: Storage | None
    uses_tib: tuple[tuple[bool, ...], ...]
    tib_errors: Matrix
    cache_errors: Matrix
    bytes: int

    @property
    def squared_error(self) -> float:
        """Sum of d^2 over steps and chunks."""
        chosen = np.where(self.uses_tib, self.tib_errors, self.cache_errors)
        return float(np.square(chosen).sum())


class Selection(BaseModel):
    """All choices of an artifact, for its manifest.

    Attributes:
        bytes: of everything: modules, and the layers that all of them share.
        shared_bytes: of those layers; 0 where no module keeps its own.
    """

    model_config = _STRICT

    measure: Literal["relative_l2"] = "relative_l2"
    budget_bytes: int | None = Field(None, description="What was to be kept to; None: the smaller error wins.")
    modules: tuple[ModuleChoice, ...]
    shared_bytes: int
    bytes: int

    @property
    def squared_error(self) -> float:
        """Sum of d^2 over modules, steps and chunks."""
        return sum(module.squared_error for module in self.modules)

    @property
    def keeps_tib(self) -> tuple[str, ...]:
        """The modules that keep their quantized layers."""
        return tuple(module.name for module in self.modules if module.strategy != "cache")


class Picture(NamedTuple):
    """What a plot of a selection needs: a row for each module, or for each of its chunks where those differ.

    Attributes:
        rows: their names.
        choices: [rows][slots] index into CHOICES.
    """

    rows: tuple[str, ...]
    choices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one temporal module could be.

    Attributes:
        tib: [slots, chunks] relative L2 error of its quantized layers.
        cache: the same of a table, for each storage.
        table_bytes: of that table.
        layer_bytes: of its quantized layers, without those that other modules read too.
    """

    name: str
    tib: Floats
    cache: Mapping[Storage, Floats]
    table_bytes: Mapping[Storage, int]
    layer_bytes: int

    def __post_init__(self) -> None:
        every = (self.tib, *self.cache.values())
        if {errors.shape for errors in every} != {self.tib.shape} or self.tib.ndim != 2:
            raise ValueError(f"{self.name}: errors must all be [slots, chunks], got {[one.shape for one in every]}")
        if not all(np.isfinite(errors).all() for errors in every):
            raise QuantError(f"{self.name}: the error of a feature is not finite: look for NaN in the model's weights")


def relative_errors(exact: Tensor, other: Tensor, chunks: int = 1) -> Floats:
    """d: [slots, chunks] relative L2 error of features [slots, width]; 1 where only the exact chunk is all zeros."""
    errors = chunk_errors(other, exact, chunks)[0]
    return np.asarray(torch.where(errors == torch.inf, 1.0, errors).numpy())


def candidate(name: str, exact: Tensor, quantized: Tensor, *, chunks: int, layer_bytes: int) -> Candidate:
    """The errors and bytes of everything that a module could be.

    Args:
        exact: [slots, width] its float features.
        quantized: the same by its quantized layers.
        chunks: equal pieces of the width.
        layer_bytes: see `Candidate`.
    """
    slots, width = exact.shape
    cache = {storage: relative_errors(exact, _stored(exact, storage, chunks), chunks) for storage in STORAGES}
    counts = {storage: table_bytes(storage, slots, width, chunks) for storage in STORAGES}
    return Candidate(name, relative_errors(exact, quantized, chunks), cache, counts, layer_bytes)


def _stored(exact: Tensor, storage: Storage, chunks: int) -> Tensor:
    """What a table gives back."""
    buffers = encode(exact, storage, chunks)
    return decode(buffers["table"], buffers.get("table_scale"), buffers.get("table_offset"), exact.shape[1])


def select(candidates: Sequence[Candidate], settings: Temporal, shared_bytes: int) -> Selection:
    """The better of table and quantized layers everywhere; under `settings.budget_bytes` if given.

    Without a budget tables are stored as `settings.storage`, and equal errors are looked up.

    Args:
        candidates: modules with a table for each step.
        settings: storage and budget.
        shared_bytes: of the quantized layers that several modules read (the chain h).

    Raises:
        QuantError: nothing fits the budget; the message says how much is needed.
    """
    if settings.budget_bytes is None:
        modules = [_chosen(one, settings.storage, True, settings.storage) for one in candidates]
    else:
        options = _within(candidates, settings.budget_bytes, shared_bytes)
        modules = [_chosen(one, *option, settings.storage) for one, option in zip(candidates, options, strict=True)]
    shared = shared_bytes if any(module.strategy != "cache" for module in modules) else 0
    return Selection(
        budget_bytes=settings.budget_bytes,
        modules=tuple(modules),
        shared_bytes=shared,
        bytes=shared + sum(module.bytes for module in modules),
    )


def picture_rows(selection: Selection) -> Picture:
    """The matrix of choices, module by step."""
    rows: list[tuple[str, tuple[int, ...]]] = []
    for module in selection.modules:
        columns = zip(*module.uses_tib, strict=True)
        chunks = [tuple(CHOICES.index("tib" if tib else str(module.storage)) for tib in mask) for mask in columns]
        if len(set(chunks)) == 1:
            rows.append((module.name, chunks[0]))
        else:
            rows += [(f"{module.name} [{index}]", chunk) for index, chunk in enumerate(chunks)]
    return Picture(tuple(name for name, _ in rows), tuple(choices for _, choices in rows))


class _Option(NamedTuple):
    """A table of that storage or none, and whether the layers are kept beside it."""

    storage: Storage | None
    keeps: bool


_OPTIONS = (*(_Option(storage, keeps) for keeps in (False, True) for storage in STORAGES), _Option(None, True))


def _mask(one: Candidate, option: _Option) -> Mask:
    """[slots, chunks] where the layers are run."""
    if option.storage is None:
        return np.ones(one.tib.shape, dtype=np.bool_)
    return (one.tib < one.cache[option.storage]) & option.keeps


def _bytes(one: Candidate, option: _Option) -> int:
    return (one.table_bytes[option.storage] if option.storage else 0) + (one.layer_bytes if option.keeps else 0)


def _error(one: Candidate, option: _Option) -> float:
    table = one.cache[option.storage] if option.storage else one.tib
    return float(np.square(np.where(_mask(one, option), one.tib, table)).sum())


def _chosen(one: Candidate, storage: Storage | None, keeps: bool, default: Storage) -> ModuleChoice:
    """An option of a module, without the part of it that is never used."""
    mask = _mask(one, _Option(storage, keeps))
    option = _Option(None if mask.all() else storage, bool(mask.any()))
    return ModuleChoice(
        name=one.name,
        strategy="cache" if not option.keeps else "both" if option.storage else "tib",
        storage=option.storage,
        uses_tib=tuple(tuple(row) for row in mask.tolist()),
        tib_errors=_matrix(one.tib),
        cache_errors=_matrix(one.cache[option.storage or default]),
        bytes=_bytes(one, option),
    )


def _matrix(errors: Floats) -> Matrix:
    """Errors to six digits, as a manifest keeps them."""
    return tuple(tuple(float(f"{value:.6g}") for value in row) for row in errors.tolist())


def _within(candidates: Sequence[Candidate], budget: int, shared: int) -> list[_Option]:
    """The options of least squared error that fit: the best without any layers, or the best with the shared ones."""
    items = [[Item(_bytes(one, option), _error(one, option)) for option in _OPTIONS] for one in candidates]
    tables = best([some[: len(STORAGES)] for some in items], budget)
    mixed = best(items, budget - shared)
    found = [packing for packing in (tables, mixed) if packing is not None]
    if not found:
        without = sum(min(item.bytes for item in some[: len(STORAGES)]) for some in items)
        needed = min(without, sum(min(item.bytes for item in some) for some in items) + shared)
        raise QuantError(f"temporal features need at least {needed} bytes, more than budget_bytes = {budget}: raise it")
    return [_OPTIONS[pick] for pick in min(found, key=lambda packing: packing.error).picks]
