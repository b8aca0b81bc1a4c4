"""Tables: what storing keeps, what it costs, and that built ones are the model's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quant.recipe import Storage
from quant.temporal.features import make_plan
from quant.temporal.tables import (
    build_tables,
    call_at,
    chunk_errors,
    chunk_width,
    chunks_of,
    decode,
    empty,
    encode,
    table_bytes,
)
from tests.quant.temporal.models import SCHEDULE, make, opened, seen_by_hooks

STORAGES: tuple[Storage, ...] = ("float32", "bfloat16", "int8", "int4")


def values(slots: int = 6, width: int = 12) -> Tensor:
    return torch.randn(slots, width, generator=torch.Generator().manual_seed(0)) * torch.arange(1, width + 1)


def back(buffers: dict[str, Tensor], width: int) -> Tensor:
    return decode(buffers["table"], buffers.get("table_scale"), buffers.get("table_offset"), width)


def test_float_tables_keep_every_bit() -> None:
    assert torch.equal(back(encode(values(), "float32", 3), 12), values())
    half = values().bfloat16().float()
    assert torch.equal(back(encode(half, "bfloat16", 3), 12), half)


@pytest.mark.parametrize(("storage", "levels"), [("int8", 255), ("int4", 15)])
@pytest.mark.parametrize(("width", "chunks"), [(12, 3), (12, 1), (9, 3), (7, 1)])
def test_integers_are_within_half_a_step_of_the_chunks_own_range(
    storage: Storage, levels: int, width: int, chunks: int
) -> None:
    exact = values(width=width)
    found = back(encode(exact, storage, chunks), width)
    for slot in range(6):
        for chunk in exact[slot].reshape(chunks, -1):
            step = float(chunk.max() - chunk.min()) / levels
            own = found[slot][torch.isin(exact[slot], chunk)]
            assert float((own - chunk).abs().max()) <= step / 2 + 1e-5
    assert float((found - exact).abs().max()) > 0


@pytest.mark.parametrize("storage", STORAGES)
def test_a_chunk_without_spread_is_exact(storage: Storage) -> None:
    exact = torch.tensor([[3.0, 3.0, 0.0, 0.0], [-0.5, -0.5, 7.0, 7.0]])
    assert torch.equal(back(encode(exact, storage, 2), 4), exact)


@pytest.mark.parametrize("storage", STORAGES)
def test_empty_buffers_and_bytes_are_those_of_full_ones(storage: Storage) -> None:
    full, bare = encode(values(width=9), storage, 3), empty(storage, 6, 9, 3, "meta")
    assert {name: (b.shape, b.dtype) for name, b in full.items()} == {n: (b.shape, b.dtype) for n, b in bare.items()}
    assert table_bytes(storage, 6, 9, 3) == sum(buffer.nbytes for buffer in full.values())


def test_four_bits_take_half_a_byte() -> None:
    assert table_bytes("int4", 50, 1024, 1) == 50 * (512 + 8)


@pytest.mark.parametrize("broken", [torch.tensor([[1.0, math.nan]]), torch.ones(3), torch.ones(2, 3)])
def test_what_no_table_can_hold(broken: Tensor) -> None:
    with pytest.raises(ValueError, match="a table takes finite values"):
        encode(broken, "int8", 2)


def test_errors_by_hand() -> None:
    exact = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    found = torch.tensor([[3.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    relative, cosine = chunk_errors(found, exact, 3)
    assert relative.tolist() == [[0.8, 0.0, math.inf]]
    assert torch.allclose(cosine, torch.tensor([[1 - 0.6, 0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("frontier", "interior", "piece"),
    [
        ([6 * 64, 2 * 64], [64, 64], 64),  # blocks and the last norm, behind an embedding as wide as the model
        ([6 * 64, 2 * 64], [512], 128),
        ([320, 640, 1280], [1280], 320),
        ([6 * 64, 3 * 64, 2 * 64], [64], 64),
        ([4 * 96, 96], [256], 96),
    ],
)
def test_chunks_are_as_wide_as_the_model_where_widths_tell(
    frontier: list[int], interior: list[int], piece: int
) -> None:
    assert chunk_width(frontier, interior) == piece
    assert [chunks_of(width, piece) * piece for width in frontier] == frontier


def test_too_many_or_unequal_pieces_are_one() -> None:
    assert chunks_of(17 * 8, 8) == 1
    assert chunks_of(20, 8) == 1


def test_a_table_holds_what_the_model_computes_at_that_number_of_rows() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    widths = {one.name: one.width for one in make_plan(program, leaves, example, {"timestep": SCHEDULE}).lookups}
    for rows in (1, 2):
        tables = build_tables(program, example, {"timestep": SCHEDULE}, widths, rows=rows)
        for slot, time in enumerate(SCHEDULE):
            seen = seen_by_hooks(tiny.module, tiny.call(torch.full((rows,), time)), list(widths))
            assert all(torch.equal(tables[name][slot], seen[name][0]) for name in widths)
    together = build_tables(program, example, {"timestep": SCHEDULE}, widths)
    assert all(torch.allclose(together[name], tables[name], atol=1e-5) for name in widths)


def test_calls_at_times_share_latents_and_keep_an_axis_for_tokens() -> None:
    tiny = make("wan")
    example = tiny.call(torch.zeros(1, 32))
    times = torch.tensor(SCHEDULE, dtype=torch.float64)
    call = call_at(example, torch.zeros(5, dtype=torch.int64), {"timestep": times})
    assert call.rows["timestep"].tolist() == [[time] for time in SCHEDULE]
    assert call.rows["hidden_states"].shape[0] == 5
    assert call.rows["hidden_states"].untyped_storage().nbytes() == example.rows["hidden_states"].nbytes
