"""Calls of several jobs as one, and the answer as several. Tensor work that must not know jobs or threads."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.denoiser import Denoiser, DenoiserCall
from pipelines.families import ROW_LISTS


def group_key(call: DenoiserCall) -> Hashable:
    """Equal for two calls exactly when they can run as one: all shapes but rows, dtypes, shared values, constants, and
    which attention modules share.
    """
    return (
        _kind(call.sample),
        _kind(call.timestep),
        tuple(sorted((name, _kind(value)) for name, value in call.inputs.items())),
        tuple(sorted((name, tuple(value.shape), _digest(value)) for name, value in call.shared.items())),
        tuple(sorted((name, _constant_key(name, value)) for name, value in call.constants.items())),
        call.pattern,
    )


def run_together(denoiser: Denoiser, calls: Sequence[DenoiserCall]) -> list[Tensor]:
    """Runs calls of one `group_key` as one; each gets its own rows [B_i, ...] back, in memory of their own.

    Raises:
        RuntimeError: the denoiser gave back another number of rows than it got.
    """
    merged = calls[0] if len(calls) == 1 else merge(calls)
    with torch.inference_mode():
        output = denoiser.run(merged)
        if output.shape[0] != merged.rows:
            raise RuntimeError(f"denoiser {denoiser.name} returned {output.shape[0]} rows for {merged.rows}")
        if output.is_cuda:
            torch.cuda.synchronize(output.device)  # callers time this call
        if len(calls) == 1:
            return [output]
        return [part.clone() for part in torch.split(output, [call.rows for call in calls])]


def merge(calls: Sequence[DenoiserCall]) -> DenoiserCall:
    """One call with the rows of all, in order. All have the same `group_key`."""
    first = calls[0]
    with torch.inference_mode():
        return DenoiserCall(
            sample=torch.cat([call.sample for call in calls]),
            timestep=torch.cat([call.timestep for call in calls]),
            step=torch.cat([call.step for call in calls]),
            total_steps=torch.cat([call.total_steps for call in calls]),
            branch=torch.cat([call.branch for call in calls]),
            inputs={name: torch.cat([call.inputs[name] for call in calls]) for name in first.inputs},
            shared=first.shared,
            constants={name: _join_constants(name, calls) for name in first.constants},
            pattern=first.pattern,
        )


def repeat(call: DenoiserCall, rows: int) -> DenoiserCall:
    """The call's rows over and over until there are exactly `rows`: what batch limits are measured with."""
    copies = -(-rows // call.rows)
    return take_rows(merge([call] * copies), torch.arange(rows))


def take_rows(call: DenoiserCall, index: Tensor) -> DenoiserCall:
    """The rows named by `index` [N] int64, in that order: a call of N rows."""
    own = index.tolist()
    return DenoiserCall(
        sample=call.sample[index],
        timestep=call.timestep[index],
        step=call.step[index],
        total_steps=call.total_steps[index],
        branch=call.branch[index],
        inputs={name: value[index] for name, value in call.inputs.items()},
        shared=call.shared,
        constants={
            name: [value[row] for row in own] if _is_row_list(name, value) else value
            for name, value in call.constants.items()
        },
        pattern=call.pattern,
    )


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape[1:]), str(tensor.dtype)


def _digest(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().tobytes(), digest_size=16).digest() + str(tensor.dtype).encode()


def _is_row_list(name: str, value: Any) -> bool:
    return name in ROW_LISTS and isinstance(value, list)


def _join_constants(name: str, calls: Sequence[DenoiserCall]) -> Any:
    value = calls[0].constants[name]
    return [entry for call in calls for entry in call.constants[name]] if _is_row_list(name, value) else value


def _constant_key(name: str, value: Any) -> str:
    return "rows" if _is_row_list(name, value) else repr(value)
