"""Rotary embeddings in graphs: found where they are, other things left, and the same numbers either way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends import convert, rotary, runtime
from quant.backends.call import Call
from quant.clock import StepClock


class Rotating(nn.Module):
    """As Wan's attention rotates; `how` computes what goes to even and odd channels."""

    def __init__(self, width: int, how: Callable[..., tuple[Tensor, Tensor]], odd: int = 1) -> None:
        super().__init__()
        self.how, self.odd = how, odd
        angles = torch.randn(1, 5, 1, width, generator=torch.Generator().manual_seed(1))
        self.cosine, self.sine = nn.Parameter(angles.cos()), nn.Parameter(angles.sin())

    def forward(self, sample: Tensor) -> Tensor:
        first, second = sample.reshape(*sample.shape[:-1], -1, 2).unbind(-1)
        cosine, sine = self.cosine[..., 0::2], self.sine[..., 1::2]
        out = torch.empty_like(sample) if self.odd else torch.zeros_like(sample)
        even, odd = self.how(first, second, cosine, sine)
        out[..., 0::2] = even
        out[..., self.odd :: 2] = odd
        return out


def wan(first: Tensor, second: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    return first * cosine - second * sine, first * sine + second * cosine


OTHERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "the other way": lambda x, y, c, s: (x * c + y * s, y * c - x * s),
    "exchanged": lambda x, y, c, s: wan(x, y, c, s)[::-1],
    "other angles": lambda x, y, c, s: (x * c - y * s, x * s + y * (c * c)),
    "channels exchanged": lambda x, y, c, s: wan(y, x, c, s),
    "one channel": lambda x, y, c, s: (x * c - x * s, x * s + x * c),
    "no products": lambda x, y, c, s: (x - y, x + y),
    "more products": lambda x, y, c, s: (x * c - y * s, x * s + y * c * 2),
}


def call(width: int, rows: int = 3) -> Call:
    sample = torch.randn(rows, 5, 2, width, generator=torch.Generator().manual_seed(2))
    return Call({"sample": sample}, StepClock.unknown(rows))


def graph(module: nn.Module, asked: Call) -> tuple[Any, int]:
    """The module's graph for any number of rows, rewritten; and how many embeddings were."""
    model = convert.convert(module.eval().requires_grad_(False), asked)
    return model, rotary.rewrite(model)


def answer(model: Any, asked: Call) -> Tensor:
    model.reshape(convert.shapes(model, asked, asked.count))
    compiled = runtime.core().compile_model(model, "CPU", runtime.properties(1))
    tensors = asked.tensors()
    result = compiled([tensors[name].numpy() for name in convert.input_names(model, asked)])
    return torch.from_numpy(np.array(result[0]))


def kinds(model: Any) -> set[str]:
    return {node.get_type_name() for node in model.get_ops()}


@pytest.mark.parametrize("width", [2, 6, 16, 24, 128])
def test_what_wan_does_becomes_products(width: int) -> None:
    module = Rotating(width, wan)
    model, count = graph(module, call(width))
    assert count == 1 and not {"ScatterNDUpdate", "Split"} & kinds(model)
    for rows in (1, 4):
        asked = call(width, rows)
        assert torch.allclose(answer(model, asked), module(asked.rows["sample"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_everything_else_stays(how: Callable[..., tuple[Tensor, Tensor]]) -> None:
    module, asked = Rotating(8, how), call(8)
    model, count = graph(module, asked)
    if count == 0:
        assert "ScatterNDUpdate" in kinds(model)
    assert torch.allclose(answer(model, asked), module(asked.rows["sample"]), rtol=1e-5, atol=1e-6)
    assert count == 0


def test_assignments_to_the_same_channels_are_none() -> None:
    module, asked = Rotating(8, wan, odd=0), call(8)
    model, count = graph(module, asked)
    assert count == 0
    assert torch.allclose(answer(model, asked), module(asked.rows["sample"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"), [("wan", 4), ("wan-ti2v", 4), ("pixart-sigma", 0), ("flux", 0), ("unet", 0)]
)
def test_models(name: str, count: int) -> None:
    module, asked = tiny_denoiser(name, rows=2)
    plain = convert.convert(module, asked)
    expected = answer(plain, asked)
    model, found = graph(module, asked)
    assert found == count
    assert torch.allclose(answer(model, asked), expected, rtol=1e-4, atol=1e-5)
