"""Products that are cut in parts become products of parts: the same numbers, and whatever else is cut stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends import parted
from quant.layers import InputGrid, QuantizedLinear
from tests.quant.backends.graphs import SLOTS, answer, by_torch, call_of, filled, graph, kinds, rewritten

WIDTH = 12


class Gated(nn.Module):
    """A linear layer, and what is made of its output."""

    def __init__(self, layer: nn.Module, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.how = layer, how

    def forward(self, sample: Tensor) -> Tensor:
        return self.how(self.layer(sample))


def geglu(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return one * nn.functional.gelu(other)


def uneven(x: Tensor) -> Tensor:
    one, other, last = torch.split(x, [3, 5, 16], dim=-1)
    return torch.cat([last, one, other * 2], -1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "float": lambda: nn.Linear(WIDTH, 24),
    "without bias": lambda: nn.Linear(WIDTH, 24, bias=False),
    "integers": lambda: filled(QuantizedLinear((24, WIDTH), True, InputGrid(8), "cpu"), steps=False),
    "scales of steps": lambda: filled(QuantizedLinear((24, WIDTH), True, InputGrid(8, SLOTS), "cpu")),
    "scales of tokens": lambda: filled(
        QuantizedLinear((24, WIDTH), True, InputGrid(8, grain="token"), "cpu"), steps=False
    ),
}


def sample(rows: int = 4, tokens: int = 5) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "WORTH", 1)


@pytest.mark.parametrize("how", [geglu, uneven])
@pytest.mark.parametrize("layer", LAYERS)
def test_each_part_is_a_product_of_its_own(layer: str, how: Callable[[Tensor], Tensor]) -> None:
    module, call = Gated(LAYERS[layer](), how), call_of(sample())
    model, count = rewritten(module, call, parted.rewrite)
    assert count == 1 and not {"Split", "VariadicSplit"} & set(kinds(model))
    assert kinds(model).count("MatMul") == (2 if how is geglu else 3)
    assert torch.allclose(answer(model, call), by_torch(module, call), rtol=1e-5, atol=1e-5)


def both(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return one * other + x.mean()


def rows_cut(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=1)
    return one * other


def normed(x: Tensor) -> Tensor:
    one, other = nn.functional.layer_norm(x, x.shape[-1:]).chunk(2, dim=-1)
    return one * other


@pytest.mark.parametrize("how", [both, rows_cut, normed])
def test_what_is_read_whole_or_mixed_stays(how: Callable[[Tensor], Tensor]) -> None:
    module, call = Gated(LAYERS["scales of steps"](), how), call_of(sample(tokens=6))
    model, count = rewritten(module, call, parted.rewrite)
    assert count == 0
    assert torch.allclose(answer(model, call), by_torch(module, call), rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_computed_stays() -> None:
    class Attending(nn.Module):
        def forward(self, sample: Tensor) -> Tensor:
            return geglu(sample @ torch.cat([sample, sample], 1).transpose(1, 2))

    call = call_of(sample())
    model, count = rewritten(Attending(), call, parted.rewrite)
    assert count == 0
    assert torch.allclose(answer(model, call), by_torch(Attending(), call), rtol=1e-5, atol=1e-5)


def test_small_ones_stay_and_it_does_not_depend_on_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "WORTH", 5 * 24)
    counts = [
        rewritten(Gated(LAYERS["float"](), geglu), call_of(sample(rows)), parted.rewrite)[1] for rows in (2, 3, 9)
    ]
    assert counts == [1, 1, 1]
    monkeypatch.setattr(parted, "WORTH", 5 * 24 + 1)
    assert rewritten(Gated(LAYERS["float"](), geglu), call_of(sample(64)), parted.rewrite)[1] == 0


@pytest.mark.parametrize(("name", "least"), [("sd15", 1), ("sdxl", 1), ("flux", 1), ("ltx", 0), ("pixart-sigma", 0)])
def test_families(name: str, least: int) -> None:
    module, call = tiny_denoiser(name, rows=2)
    expected = answer(graph(module, call), call)
    model, count = rewritten(module, call, parted.rewrite)
    assert count >= least
    assert float(quant.relative_errors(answer(model, call), expected).max()) < 1e-5
