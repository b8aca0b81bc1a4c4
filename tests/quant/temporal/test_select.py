"""Disturbance-aware selection: the smaller error wins, budgets are well spent, and plots get what they need."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.errors import QuantError
from quant.recipe import Storage, Temporal
from quant.temporal.select import (
    CHOICES,
    STORAGES,
    Candidate,
    Selection,
    candidate,
    picture_rows,
    relative_errors,
    select,
)
from quant.temporal.tables import decode, encode, table_bytes

SLOTS, WIDTH, CHUNKS = 6, 96, 3
PIECE = WIDTH // CHUNKS
SHARED = 150


def feature(seed: int) -> Tensor:
    return torch.randn(SLOTS, WIDTH, generator=torch.Generator().manual_seed(seed))


def disturbed(seed: int, noise: float) -> Tensor:
    """A feature whose quantized layers are further off at later steps and in later chunks."""
    growth = torch.linspace(0.1, 2.0, SLOTS)[:, None] * torch.linspace(0.5, 1.5, WIDTH)
    return feature(seed) + noise * growth * feature(seed + 50)


def candidates(noise: tuple[float, ...] = (0.1, 0.003, 0.03), layer_bytes: int = 60) -> list[Candidate]:
    return [
        candidate(f"g{i}", feature(i), disturbed(i, size), chunks=CHUNKS, layer_bytes=layer_bytes + 7 * i)
        for i, size in enumerate(noise)
    ]


def settings(storage: Storage = "int8", budget: int | None = None) -> Temporal:
    return Temporal(maintenance="select", storage=storage, budget_bytes=budget)


def test_the_smaller_error_wins_everywhere() -> None:
    """Against the definition, cell by cell."""
    chosen = select(candidates(), settings("int4"), SHARED)
    kinds = set()
    for i, (module, noise) in enumerate(zip(chosen.modules, (0.1, 0.003, 0.03), strict=True)):
        exact, quantized = feature(i).double(), disturbed(i, noise).double()
        buffers = encode(feature(i), "int4", CHUNKS)
        cached = decode(buffers["table"], buffers["table_scale"], buffers["table_offset"], WIDTH).double()
        for slot, chunk in itertools.product(range(SLOTS), range(CHUNKS)):
            own = slice(chunk * PIECE, chunk * PIECE + PIECE)
            of_tib, of_cache = (
                float((other[slot, own] - exact[slot, own]).norm() / exact[slot, own].norm())
                for other in (quantized, cached)
            )
            assert module.uses_tib[slot][chunk] == (of_tib < of_cache)
            assert module.tib_errors[slot][chunk] == pytest.approx(of_tib, rel=1e-5)
            assert module.cache_errors[slot][chunk] == pytest.approx(of_cache, rel=1e-5)
        kinds.add(module.strategy)
    assert kinds == {"tib", "both"}


def test_a_float_table_is_never_beaten() -> None:
    chosen = select(candidates(), settings("float32"), SHARED)
    assert [module.strategy for module in chosen.modules] == ["cache"] * 3
    assert chosen.squared_error == 0.0
    assert chosen.shared_bytes == 0 and chosen.bytes == 3 * SLOTS * WIDTH * 4
    assert chosen.keeps_tib == ()


def test_bytes_are_those_of_what_is_used() -> None:
    chosen = select(candidates(), settings("int4"), SHARED)
    for i, module in enumerate(chosen.modules):
        table = 0 if module.storage is None else table_bytes(module.storage, SLOTS, WIDTH, CHUNKS)
        assert (module.storage is None) == (module.strategy == "tib")
        assert module.bytes == table + (0 if module.strategy == "cache" else 60 + 7 * i)
    assert chosen.shared_bytes == SHARED
    assert chosen.bytes == SHARED + sum(module.bytes for module in chosen.modules)


def least_error(options: list[Candidate], budget: int) -> float | None:
    """All choices one by one: a table or none, layers kept or not, for each module."""
    ways = [way for way in itertools.product((*STORAGES, None), (False, True)) if way != (None, False)]
    least = None
    for choice in itertools.product(ways, repeat=len(options)):
        taken, error = SHARED if any(keeps for _, keeps in choice) else 0, 0.0
        for one, (storage, keeps) in zip(options, choice, strict=True):
            taken += (one.table_bytes[storage] if storage else 0) + (one.layer_bytes if keeps else 0)
            table = one.cache[storage] if storage else np.full(one.tib.shape, np.inf)
            error += float((np.minimum(table, one.tib if keeps else np.inf) ** 2).sum())
        if taken <= budget and (least is None or error < least):
            least = error
    return least


@pytest.mark.parametrize("layer_bytes", [60, 300, 900])
def test_no_choice_under_a_budget_has_less_error(layer_bytes: int) -> None:
    options = candidates(layer_bytes=layer_bytes)
    strategies, refused = set(), 0
    for budget in range(250, 7500, 250):
        least = least_error(options, budget)
        if least is None:
            refused += 1
            with pytest.raises(QuantError, match="raise it"):
                select(options, settings("int8", budget), SHARED)
            continue
        chosen = select(options, settings("int8", budget), SHARED)
        assert chosen.bytes <= budget and chosen.budget_bytes == budget
        assert chosen.squared_error == pytest.approx(least, rel=1e-4, abs=1e-12)
        strategies |= {module.strategy for module in chosen.modules}
    assert refused > 0
    assert strategies == {"cache", "both", "tib"}


def test_what_is_needed_at_least_is_said_and_enough() -> None:
    options = candidates(layer_bytes=900)
    needed = sum(one.table_bytes["int4"] for one in options)
    with pytest.raises(QuantError, match=f"at least {needed} bytes"):
        select(options, settings(budget=needed - 1), SHARED)
    chosen = select(options, settings(budget=needed), SHARED)
    assert [module.storage for module in chosen.modules] == ["int4"] * 3


def test_shared_layers_are_paid_for_once() -> None:
    """Layers for nothing, but the chain that they need costs: worth it for several modules, not for one."""
    precise = [candidate(f"g{i}", feature(i), feature(i) + 1e-5, chunks=1, layer_bytes=0) for i in range(3)]
    of_table = precise[0].table_bytes["float32"]
    one, shared = select(precise[:1], settings(budget=of_table), of_table + 1), of_table + 1
    assert one.modules[0].strategy == "cache" and one.shared_bytes == 0
    all_three = select(precise, settings(budget=shared), shared)
    assert [module.strategy for module in all_three.modules] == ["tib"] * 3 and all_three.bytes == shared


def test_more_bytes_never_mean_more_error() -> None:
    errors = [select(candidates(), settings(budget=budget), SHARED).squared_error for budget in range(400, 7500, 300)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]


def test_it_survives_a_manifest() -> None:
    chosen = select(candidates(), settings("int4"), SHARED)
    assert Selection.model_validate_json(chosen.model_dump_json()) == chosen


def test_errors_of_chunks_of_zeros() -> None:
    exact = torch.zeros(2, 4)
    exact[1] = torch.tensor([3.0, 4.0, 0.0, 0.0])
    other = torch.tensor([[0.0, 0.0, 1.0, 0.0], [3.0, 4.5, 0.0, 2.0]])
    assert relative_errors(exact, other, 2).tolist() == [[0.0, 1.0], [pytest.approx(0.1), 1.0]]


def test_nan_features_are_refused() -> None:
    spoiled = feature(0)
    spoiled[2, 3] = float("nan")
    with pytest.raises(QuantError, match="g: the error of a feature is not finite"):
        candidate("g", feature(0), spoiled, chunks=1, layer_bytes=0)


def test_the_picture_shows_each_choice() -> None:
    chosen = select(candidates(), settings("int4"), SHARED)
    picture = picture_rows(chosen)
    assert all(len(row) == SLOTS for row in picture.choices)
    for name, row in zip(picture.rows, picture.choices, strict=True):
        own, _, index = name.partition(" ")
        module = next(module for module in chosen.modules if module.name == own)
        chunks = [int(index.strip("[]"))] if index else range(CHUNKS)
        for slot, choice in enumerate(row):
            assert all((CHOICES[choice] == "tib") == module.uses_tib[slot][chunk] for chunk in chunks)
    assert {CHOICES[choice] for row in picture.choices for choice in row} == {"int4", "tib"}
    assert "g1" in picture.rows and "g0 [0]" in picture.rows  # chunks of g0 differ, those of g1 do not
