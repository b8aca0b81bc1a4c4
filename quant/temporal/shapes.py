"""How outputs of temporal layers lie: which numbers belong to one timestep. Found by running; must not know models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.errors import QuantError
from quant.temporal.discover import TemporalLeaf
from quant.temporal.program import TemporalProgram
from quant.temporal.tables import call_at
from quant.temporal.tape import LeafCall


class Shape(NamedTuple):
    """How a leaf's output lies; `reason` says why no table can hold it, if so."""

    last: int
    width: int
    spread: bool
    by_index: bool
    reason: str = ""


def leaf_shapes(
    program: TemporalProgram, leaves: Sequence[TemporalLeaf], example: Call, times: Mapping[str, Sequence[float]]
) -> dict[str, Shape]:
    """How each leaf's output lies, found by running two timesteps together and each alone.

    Raises:
        QuantError: an output is not finite.
    """
    count = 2
    slots = torch.arange(count) % len(next(iter(times.values())))
    values = {name: torch.tensor(schedule, dtype=torch.float64)[slots] for name, schedule in times.items()}
    rows = torch.zeros(count, dtype=torch.int64)
    together = call_at(example, rows, values)
    with torch.no_grad():
        both = program.run(together)
        alone = [
            program.run(call_at(example, rows[:1], {name: own[i : i + 1] for name, own in values.items()}))
            for i in range(count)
        ]
    calls, layers = {call.name: call for call in program.leaf_calls(together)}, program.layers()
    full = {call.name: math.prod(call.output_shape) for call in program.leaf_calls(example)}
    rows_of_time = example.count if example.timestep is None else example.timestep.numel()
    shapes = {}
    for leaf in leaves:
        shape = _shape(leaf, calls[leaf.name], count, both.get(leaf.name), [one.get(leaf.name) for one in alone])
        if calls[leaf.name].dtype is not dtype_of(layers[leaf.name]):
            shape = shape._replace(reason=f"its output is {calls[leaf.name].dtype}, which its weight is not")
        elif not shape.reason and full[leaf.name] % (shape.width * rows_of_time):
            shape = shape._replace(reason="it does not have a row for each of a call's timesteps")
        shapes[leaf.name] = shape
    return shapes


def dtype_of(layer: nn.Module) -> torch.dtype:
    """The dtype of a layer's first floating-point parameter or buffer; the default one if it has none."""
    every = (tensor.dtype for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point())
    return next(every, torch.get_default_dtype())


def _shape(
    leaf: TemporalLeaf, call: LeafCall, count: int, both: Tensor | None, alone: Sequence[Tensor | None]
) -> Shape:
    last = call.output_shape[-1] if call.output_shape else 1
    numbers = math.prod(call.output_shape)
    width = numbers // count
    lead = call.input_shape if call.by_index else call.input_shape[:-1]
    shape = Shape(last, width, False, call.by_index)
    if call.output_shape[:-1] != lead:
        return shape._replace(reason=f"a {leaf.kind} is no layer over the last axis")
    if both is None:
        return shape
    if leaf.calls > 1:
        return shape._replace(reason=f"it runs {leaf.calls} times in a call: one table cannot hold that")
    if not bool(both.isfinite().all()):
        raise QuantError(
            f"temporal layer {leaf.name} puts out NaN or infinity: its weights, or those before it, are broken"
        )
    if not _follows_rows(both, alone, last):
        return shape._replace(reason="its output does not follow the rows of the timestep")
    rows = both.reshape(count, -1)
    pieces = rows.reshape(count, -1, last)
    if width != last and bool((pieces == pieces[:, :1]).all()):
        return shape._replace(width=last, spread=True)
    return shape


def _follows_rows(both: Tensor, alone: Sequence[Tensor | None], last: int) -> bool:
    """Whether an output is, row after row, what each row gives alone, up to rounding that depends on their number."""
    if both.numel() % (len(alone) * last):
        return False
    for row, one in zip(both.float().reshape(len(alone), -1), alone, strict=True):
        if one is None or one.numel() != row.numel():
            return False
        if not torch.allclose(row, one.float().flatten(), rtol=1e-2, atol=1e-4 * float(row.abs().max())):
            return False
    return True
