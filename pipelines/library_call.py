"""A pipeline's denoiser calls in the quantization library's words. Must not know what is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

import quant
from pipelines.denoiser import DenoiserCall, argument_names
from pipelines.families import ROW_LISTS, role_of


def library_calls(kind: type[nn.Module], call: DenoiserCall) -> list[quant.Call]:
    """A call of a denoiser class as the library takes it, rows in order: tensors as they are, dtypes and devices too.

    One call; or one per row where an argument is a list with an entry per row, which the library does not know.
    """
    whole = _whole(kind, call)
    lists = {name: value for name, value in call.constants.items() if name in ROW_LISTS and isinstance(value, list)}
    if not lists:
        return [whole]
    return [_only(whole, row, lists) for row in range(call.rows)]


def plain(call: quant.Call) -> quant.Call:
    """The same call with float32 tensors on the CPU: what backends run on."""
    rows = {name: _plain(tensor) for name, tensor in call.rows.items()}
    shared = {name: _plain(tensor) for name, tensor in call.shared.items()}
    return replace(call, rows=rows, shared=shared)


def _whole(kind: type[nn.Module], call: DenoiserCall) -> quant.Call:
    sample, timestep = argument_names(kind)
    rows = {sample: call.sample, timestep: call.timestep, **call.inputs}
    return quant.Call(
        rows=rows,
        clock=quant.StepClock(call.step.cpu(), call.total_steps.cpu(), call.branch.cpu()),
        shared=call.shared,
        constants={**call.constants, "return_dict": False},
        roles={name: role_of(name) for name in (*rows, *call.shared) if name != sample},
        pattern=call.pattern,
    )


def _only(whole: quant.Call, row: int, lists: Mapping[str, list[object]]) -> quant.Call:
    own = {name: [value[row]] for name, value in lists.items()}
    return replace(whole.take(torch.tensor([row])), constants={**whole.constants, **own})


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor
