"""Temporal features as tables: how rows are stored, what storing costs in error and bytes, how tables are computed.

A table of a layer has a row for each slot, [slots, width]. "float32", "bfloat16" store it as it is; "int8", "int4"
store unsigned integers with a scale and an offset for each slot and chunk: value = integer * scale + offset, over the
chunk's own range, so that a chunk without spread is exact. "int4" holds two columns in a byte, column i of the first
half in the low bits beside column i of the second half, in memory as on disk. A chunk is an equal piece of the width,
such as shift, scale or gate. Must not know models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from quant.backends.call import Call
from quant.clock import Moment
from quant.recipe import Storage
from quant.temporal.program import TemporalProgram

LEVELS: Mapping[Storage, int] = {"int8": 255, "int4": 15}
"""Largest integer of each integer storage."""

MAX_CHUNKS = 16
"""A width that would fall into more pieces is taken whole."""


def encode(values: Tensor, storage: Storage, chunks: int) -> dict[str, Tensor]:
    """Buffers that hold `values` [slots, width]: `table`; for integers also `table_scale`, `table_offset`.

    Raises:
        ValueError: the values are not [slots, width], not finite, or `chunks` does not divide the width.
    """
    if values.ndim != 2 or values.shape[1] % chunks or not bool(values.isfinite().all()):
        raise ValueError(
            f"a table takes finite values [slots, width] with width in {chunks} equal chunks, got {tuple(values.shape)}"
        )
    values = values.detach().float()
    if storage not in LEVELS:
        return {"table": values.to(getattr(torch, storage))}
    pieces = in_chunks(values, chunks)
    low, high = pieces.amin(2), pieces.amax(2)
    spread = (high - low) / LEVELS[storage]
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))
    integers = (
        ((pieces - low[..., None]) / scale[..., None]).round().clamp(0, LEVELS[storage]).to(torch.uint8).flatten(1)
    )
    table = _packed(integers) if storage == "int4" else integers
    return {"table": table, "table_scale": scale, "table_offset": low}


def empty(storage: Storage, slots: int, width: int, chunks: int, device: torch.device | str) -> dict[str, Tensor]:
    """Buffers like those of `encode` without values."""
    if storage not in LEVELS:
        return {"table": torch.empty(slots, width, dtype=getattr(torch, storage), device=device)}
    stored = -(-width // 2) if storage == "int4" else width
    numbers = {name: torch.empty(slots, chunks, device=device) for name in ("table_scale", "table_offset")}
    return {"table": torch.empty(slots, stored, dtype=torch.uint8, device=device), **numbers}


def decode(table: Tensor, scale: Tensor | None, offset: Tensor | None, width: int) -> Tensor:
    """Values [..., width] float32 of stored rows [..., stored width] and their numbers [..., chunks].

    Plain arithmetic, so that compilers of graphs understand it.
    """
    values = table.to(torch.float32)
    if scale is None or offset is None:
        return values
    if table.shape[-1] != width:
        upper = torch.floor(values * (1 / 16))
        values = torch.cat([values - upper * 16, upper], dim=-1)[..., :width]
    pieces = in_chunks(values, scale.shape[-1])
    return (pieces * scale[..., None] + offset[..., None]).flatten(-2)


def in_chunks(values: Tensor, chunks: int) -> Tensor:
    """Values [..., width] as equal pieces [..., chunks, width / chunks]."""
    return values.unflatten(-1, (chunks, -1))  # type: ignore[no-untyped-call, no-any-return]


def table_bytes(storage: Storage, slots: int, width: int, chunks: int) -> int:
    """Bytes of a table as stored."""
    return sum(buffer.nbytes for buffer in empty(storage, slots, width, chunks, "meta").values())


def chunk_errors(values: Tensor, reference: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """(relative L2, 1 - cosine) of rows [slots, width] against reference rows, each [slots, chunks] float64.

    Relative L2 is ||v - r|| / ||r||: 0 where both are zero, infinite where only the reference is. The cosine of two
    zero vectors is 1, of a zero and another 0.
    """
    v, r = (in_chunks(rows.double(), chunks) for rows in (values, reference))
    error, size, own = (v - r).norm(dim=2), r.norm(dim=2), v.norm(dim=2)
    relative = torch.where(error == 0, error, error / size)
    product = size * own
    cosine = torch.where(product > 0, (v * r).sum(2) / product.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    cosine = torch.where((size == 0) & (own == 0), 1.0, cosine)
    return relative, torch.where(error == 0, 0.0, 1 - cosine)


def chunk_width(frontier: Iterable[int], interior: Iterable[int]) -> int:
    """Width of a chunk, for layers of these widths: the denoiser's inner width where that can be told.

    The greatest common divisor of the frontier's widths; half of it where a layer before the frontier is that wide
    (modulations of 6 and 2 pieces have 2 in common, and the timestep's embedding has the width of one).
    """
    common = math.gcd(*frontier)
    return common // 2 if common % 2 == 0 and common // 2 in set(interior) else common


def chunks_of(width: int, piece: int) -> int:
    """Number of equal chunks of a width: pieces of `piece` if that divides it into few, else 1."""
    return width // piece if width % piece == 0 and width // piece <= MAX_CHUNKS else 1


def call_at(example: Call, source: Tensor, times: Mapping[str, Tensor]) -> Call:
    """A call of N rows that differ in time, constants and pooled text; latents and text have no memory of their own.

    Args:
        example: a call; arguments of time with an axis for tokens keep that axis, with one token.
        source: [N] int64, row of the example that constants and pooled text are taken of.
        times: [N] values by name, for each argument of time.
    """
    rows: dict[str, Tensor] = {}
    for name, tensor in example.rows.items():
        if example.role(name) == "time":
            rows[name] = times[name].to(tensor).view(-1, *[1] * (tensor.ndim - 1))
        elif example.role(name) in ("constant", "pooled"):
            rows[name] = tensor[source.to(tensor.device)]
        else:
            rows[name] = tensor[:1].expand(source.shape[0], *tensor.shape[1:])
    return Call(rows, example.clock.take(source), example.shared, example.constants, example.roles)


class Exactly(NamedTuple):
    """Has features computed as in calls of `rows` rows (times tokens), each at its place, `places` [N], among them.

    Matrix products round by the number of rows, and some by a row's place: only so are all bits those of the call.
    """

    rows: int
    places: Tensor


def features_at(
    program: TemporalProgram,
    example: Call,
    source: Tensor,
    times: Mapping[str, Tensor],
    widths: Mapping[str, int],
    *,
    exactly: Exactly | None = None,
    moments: Callable[[Tensor], Moment] | None = None,
) -> dict[str, Tensor]:
    """Features [N, width] float32 of some layers, for N pairs of a row of an example and a time: all as one batch.

    Args:
        program: computes them.
        example: see `call_at`, as are `source` and `times`.
        widths: layer to the width of its features.
        exactly: to compute each in a batch of copies of it instead.
        moments: times [rows, arguments] float64 to the moment that quantized layers read; None where they need none.
    """
    if exactly is None:
        return _outputs(program, example, source, times, widths, moments)
    found: dict[str, list[Tensor]] = {name: [] for name in widths}
    for one, place in enumerate(exactly.places.tolist()):
        copies = torch.full((exactly.rows,), one)
        here = {name: values[copies] for name, values in times.items()}
        outputs = _outputs(program, example, source[copies], here, widths, moments)
        for name, rows in outputs.items():
            found[name].append(rows[place])
    return {name: torch.stack(rows) for name, rows in found.items()}


def _outputs(
    program: TemporalProgram,
    example: Call,
    source: Tensor,
    times: Mapping[str, Tensor],
    widths: Mapping[str, int],
    moments: Callable[[Tensor], Moment] | None,
) -> dict[str, Tensor]:
    moment = None if moments is None else moments(torch.stack(list(times.values()), dim=-1).double())
    with torch.no_grad():
        outputs = program.run(call_at(example, source, times), moment=moment)
    return {name: outputs[name].float().reshape(source.shape[0], -1)[:, :width] for name, width in widths.items()}


def build_tables(
    program: TemporalProgram,
    example: Call,
    times: Mapping[str, Sequence[float]],
    widths: Mapping[str, int],
    *,
    rows: int | None = None,
) -> dict[str, Tensor]:
    """Tables [slots, width] float32 of layers that need no pooled text, for the constants of a call's first row.

    Args:
        program: computes them, through the model's own casts.
        example: a call of the kind that the tables are for.
        times: for each argument of time, its value at each slot.
        widths: layer to the width of its features.
        rows: of the calls whose bits the tables are to have, see `Exactly`; None: all slots are one batch.
    """
    values = {name: torch.tensor(schedule, dtype=torch.float64) for name, schedule in times.items()}
    slots = next(iter(values.values())).shape[0]
    first = torch.zeros(slots, dtype=torch.int64)
    return features_at(program, example, first, values, widths, exactly=Exactly(rows, first) if rows else None)


def _packed(integers: Tensor) -> Tensor:
    """uint8 integers 0..15 [slots, width] two to a byte, [slots, ceil(width / 2)]."""
    width = integers.shape[1]
    half = -(-width // 2)
    padded = torch.nn.functional.pad(integers, (0, 2 * half - width))
    return padded[:, :half] + padded[:, half:] * 16
