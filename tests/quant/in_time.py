"""Calls of tiny denoisers at several timesteps, as a sampler makes them, and denoisers without weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

import quant

Run = Callable[[Callable[[quant.Call], Tensor]], None]


def run_in_time(call: quant.Call) -> Run:
    """What calls a tiny denoiser at six timesteps, four rows of two branches at each."""
    (time,) = (name for name in call.rows if call.role(name) == "time")

    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for step, at_time in enumerate((999, 800, 600, 400, 200, 10)):
            generator = torch.Generator().manual_seed(step)
            rows = {
                name: torch.randn(tensor.shape, generator=generator) if call.role(name) == "sample" else tensor
                for name, tensor in call.rows.items()
            }
            rows[time] = torch.full_like(call.rows[time], at_time)
            clock = quant.StepClock(torch.full((4,), step), torch.full((4,), 6), torch.tensor([0, 0, 1, 1]))
            answer(replace(call, rows=rows, clock=clock))

    return run


def on_meta(module: nn.Module) -> nn.Module:
    """A copy with its parameters on the meta device and its buffers real."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=False))
    return copied
