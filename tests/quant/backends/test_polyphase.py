"""Convolutions of doubled pictures at the size before: found where they are, near or equal, and other things left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import quant
from quant.backends import kernels, padding, polyphase
from quant.backends.nodes import Weight
from tests.quant.backends.graphs import answer, by_torch, call_of, compiled, convolution, kinds, rewritten


class Up(nn.Module):
    """Resizes a picture and convolves it."""

    def __init__(self, layer: nn.Module, read_twice: bool = False, **resized: Any) -> None:
        super().__init__()
        self.layer, self.resized, self.read_twice = (
            layer,
            resized or {"scale_factor": 2.0, "mode": "nearest"},
            read_twice,
        )

    def forward(self, sample: Tensor) -> Tensor:
        large = functional.interpolate(sample, **self.resized)
        output: Tensor = self.layer(large)
        return output + large.mean() if self.read_twice else output


def picture(height: int = 5, width: int = 4, rows: int = 3, channels: int = 6) -> Tensor:
    return torch.randn(rows, channels, height, width, generator=torch.Generator().manual_seed(5)) + 0.5


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyphase, "WORTH", 1)


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (2, 7)])
@pytest.mark.parametrize("zero_point", [0, 57])
@pytest.mark.parametrize("steps", [True, False])
@pytest.mark.parametrize(("bits", "most"), [(4, 1e-5), (8, 0.02)])
def test_sums_that_8_bits_hold_are_exact_and_others_near(
    size: tuple[int, int], zero_point: int, steps: bool, bits: int, most: float
) -> None:
    layer = convolution(nn.Conv2d(6, 8, 3, padding=1), bits=bits, zero_point=zero_point, steps=steps)
    module, call = Up(layer), call_of(picture(*size))
    model, count = rewritten(module, call, polyphase.rewrite)
    assert count == 1 and "Interpolate" not in kinds(model) and kinds(model).count("Convolution") == 4
    found, expected = answer(model, call), by_torch(module, call)
    assert found.shape == expected.shape == (3, 8, 2 * size[0], 2 * size[1])
    assert float(quant.relative_errors(found, expected).max()) < most


@pytest.mark.parametrize("steps", [True, False])
def test_kernels_take_integers_and_do_less(steps: bool) -> None:
    layer = convolution(nn.Conv2d(32, 32, 3, padding=1), steps=steps)
    module, call = Up(layer), call_of(picture(8, 8, channels=32))
    direct, _ = rewritten(module, call, lambda _: 0)
    model, _ = rewritten(module, call, polyphase.rewrite)
    padding.rewrite(model)
    whole, less = kernels.multiply_adds(direct), kernels.multiply_adds(model)
    assert less * 36 == whole * 16
    assert kernels.int8_multiply_adds(compiled(model)) == less


LEFT = {
    "a filter": {"size": (10, 8), "mode": "bilinear"},
    "three times": {"scale_factor": 3.0, "mode": "nearest"},
    "one side": {"size": (10, 4), "mode": "nearest"},
    "one less": {"size": (9, 8), "mode": "nearest"},
}


@pytest.mark.parametrize("resized", LEFT.values(), ids=LEFT)
def test_other_ways_of_resizing_stay_or_come_to_the_same(resized: dict[str, Any]) -> None:
    module = Up(convolution(nn.Conv2d(6, 8, 3, padding=1), bits=4), **resized)
    call = call_of(picture())
    model, count = rewritten(module, call, polyphase.rewrite)
    assert count == 0
    assert torch.allclose(answer(model, call), by_torch(module, call), rtol=1e-4, atol=1e-4)


OTHERS = {
    "stride": nn.Conv2d(6, 8, 3, padding=1, stride=2),
    "no padding": nn.Conv2d(6, 8, 3),
    "wide": nn.Conv2d(6, 8, 5, padding=2),
    "dilated": nn.Conv2d(6, 8, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize("like", OTHERS.values(), ids=OTHERS)
def test_other_convolutions_stay(like: nn.Conv2d) -> None:
    module, call = Up(convolution(like, bits=4)), call_of(picture())
    model, count = rewritten(module, call, polyphase.rewrite)
    assert count == 0
    assert torch.allclose(answer(model, call), by_torch(module, call), rtol=1e-4, atol=1e-4)


def test_float_convolutions_and_pictures_that_others_read_stay() -> None:
    for module in (Up(nn.Conv2d(6, 8, 3, padding=1)), Up(convolution(nn.Conv2d(6, 8, 3, padding=1)), read_twice=True)):
        model, count = rewritten(module, call_of(picture()), polyphase.rewrite)
        assert count == 0 and "Interpolate" in kinds(model)


def test_small_ones_stay_and_it_does_not_depend_on_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Up(convolution(nn.Conv2d(6, 8, 3, padding=1)))
    macs = 10 * 8 * 6 * 8 * 9
    for worth, count in ((macs, 1), (macs + 1, 0)):
        monkeypatch.setattr(polyphase, "WORTH", worth)
        for rows in (1, 4):
            assert rewritten(module, call_of(picture(rows=rows)), polyphase.rewrite)[1] == count


@pytest.mark.parametrize("most", [31, 127])
def test_folded_weights_are_sums_rounded_once(most: int) -> None:
    random = np.random.default_rng(most)
    integers = random.integers(-most, most + 1, (5, 3, 3, 3)).astype(np.int8)
    weight = Weight(integers, random.random((5, 1, 1, 1)).astype(np.float32) + 0.5)
    x = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = functional.conv2d(large, torch.from_numpy(weight.numbers).double(), padding=1)
    for row in (0, 1):
        for column in (0, 1):
            part = polyphase.folded(weight, row, column)
            assert np.abs(part.integers.astype(int)).max() <= 127
            exact = most == 31
            assert exact == np.array_equal(part.scales, weight.scales)
            padded = functional.pad(x, (1 - column, column, 1 - row, row))
            found = functional.conv2d(padded, torch.from_numpy(part.numbers).double())
            off = float((found - expected[..., row::2, column::2]).abs().max())
            assert off < (1e-4 if exact else 12 * 0.5 * float(part.scales.max()) * float(x.abs().max()))
