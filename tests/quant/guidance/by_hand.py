"""Sharing between branches computed the long way: every row in full, then overwritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends.call import call_module
from quant.nesting import tensors_of

Change = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Module, its input and output [B, ...], indices of conditional and of unconditional rows, to the output to use."""


def paired(name: str, pairs: int) -> tuple[nn.Module, quant.Call]:
    """A family's tiny model and a call of unconditional and conditional rows in turn."""
    module, call = tiny_denoiser(name, rows=2 * pairs)
    step = torch.arange(pairs).repeat_interleave(2)
    clock = quant.StepClock(step, torch.full_like(step, 8), torch.arange(2 * pairs) % 2)
    return module, replace(call, clock=clock)


def taken_over(module: nn.Module, x: Tensor, output: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """The conditional rows' output for both; a plain UNet's attention adds its own input."""
    output = output.clone()
    own = x if getattr(module, "residual_connection", False) else torch.zeros_like(output)
    output[uncond] = output[cond] - own[cond] + own[uncond]
    return output


def by_hand(module: nn.Module, call: quant.Call, names: Sequence[str], change: Change = taken_over) -> Tensor:
    """The answer to a call whose named modules' outputs are changed."""
    cond, uncond = call.pairs().T

    def hook(part: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = next(tensors_of((args, kwargs)))
        if isinstance(output, Tensor):
            return change(part, x, output, cond, uncond)
        return tuple(change(part, x, one, cond, uncond) for one in output)

    handles = [module.get_submodule(name).register_forward_hook(hook, with_kwargs=True) for name in names]
    with torch.no_grad():
        answer = call_module(module, call)
    for handle in handles:
        handle.remove()
    return answer
