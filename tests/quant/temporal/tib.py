"""A small denoiser with a temporal information block, and what the tests of its maintenance share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.clock import StepClock
from quant.layers import InputGrid, QuantizedLinear
from quant.temporal.discover import discover
from quant.temporal.layers import StepwiseLinear
from quant.temporal.program import TemporalProgram

STEPS = 12
SCHEDULE = torch.linspace(990.0, 10.0, STEPS)


class Denoiser(nn.Module):
    """[B, 4] and [B] times to [B, 4]: h is two linears, each g_i SiLU and one; `again` runs the last twice."""

    again = False

    def __init__(self, width: int = 24, features: tuple[int, ...] = (8, 16, 10), pooled: int = 0) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(8, width)
        self.linear_2 = nn.Linear(width, width)
        self.text = nn.Linear(pooled, width) if pooled else None
        self.consumers = nn.ModuleList(nn.Linear(width, size) for size in features)
        self.mix = nn.Linear(4, 4)

    def forward(self, sample: Tensor, timestep: Tensor, pooled: Tensor | None = None) -> Tensor:
        angles = timestep[:, None] * 10.0 ** -torch.arange(4) / 10
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).to(sample.dtype)
        embedding = self.linear_1(waves)
        embedding = self.linear_2(torch.nn.functional.silu(embedding))
        if self.text is not None:
            embedding = embedding + self.text(pooled)
        output: Tensor = self.mix(sample)
        for consumer in self.consumers:
            output = output + consumer(torch.nn.functional.silu(embedding)).mean(1, keepdim=True)
        if self.again:
            output = output + self.consumers[-1](torch.tanh(embedding)).mean(1, keepdim=True)
        return output


def make_denoiser(seed: int = 0, width: int = 24, features: tuple[int, ...] = (8, 16, 10), pooled: int = 0) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(width, features, pooled).eval().requires_grad_(False)


def make_call(times: Tensor, pooled: Tensor | None = None) -> Call:
    rows = {"sample": torch.zeros(len(times), 4), "timestep": times}
    if pooled is not None:
        rows["pooled"] = pooled
    clock = StepClock.unknown(len(times))
    return Call(rows, clock, roles={"timestep": "time", "pooled": "pooled"})


def make_program(module: Denoiser, call: Call) -> TemporalProgram:
    return TemporalProgram(module, discover(module, call.take(torch.zeros(1, dtype=torch.int64))))


def empty_layers(program: TemporalProgram, bits: int | None = 8, slots: int = STEPS) -> dict[str, QuantizedLinear]:
    """A layer to be filled for each temporal linear: a grid for each slot, or one grid where there are no slots."""
    layers: dict[str, QuantizedLinear] = {}
    for name, linear in program.layers().items():
        assert isinstance(linear, nn.Linear)
        shape = (linear.out_features, linear.in_features)
        if bits is not None and slots:
            layers[name] = StepwiseLinear(shape, True, bits, slots, "cpu")
        else:
            layers[name] = QuantizedLinear(shape, True, InputGrid(bits), "cpu")
    return layers
