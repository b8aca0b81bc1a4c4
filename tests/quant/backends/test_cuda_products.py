"""Which linears run in fp8: those that can and are faster, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from quant.backends import cuda_products
from quant.backends.cuda_install import install
from quant.backends.cuda_layers import KernelLinear, Once
from quant.backends.cuda_products import Fp8Linear, choose
from quant.backends.cuda_waiting import Switch
from quant.layers import InputGrid, empty_like
from tests.quant.backends.test_cuda_layers import fill, numbers
from tests.quant.kernels.on import DEVICE


def made() -> nn.Sequential:
    """Linears of two shapes, one that has no fp8 product, one of 4 bits, one of float inputs."""
    layers = []
    for width, bits, grid in (
        (32, 8, InputGrid(8, grain="token")),
        (32, 8, InputGrid(8)),
        (48, 8, InputGrid(8, slots=3)),
        (40, 8, InputGrid(8)),
        (32, 4, InputGrid(8)),
        (32, 8, InputGrid(None)),
    ):
        layer = empty_like(nn.Linear(width, 16), grid, "cpu")
        fill(layer, bits)
        layers.append(layer)
    module = nn.Sequential(*layers).to(DEVICE)
    install(module, Once(), torch.float32, Switch())
    return module


def test_int8_is_what_was_calibrated() -> None:
    module = made()
    assert set(choose(module, "int8").values()) == {"int8_linear", "int4_linear", "int8_linear of float inputs"}
    assert all(isinstance(layer, KernelLinear) for layer in module)


def test_all_that_can_be_fp8() -> None:
    module = made()
    told = choose(module, "fp8")
    assert [name for name, kernel in told.items() if kernel == "fp8_linear"] == ["0", "1", "2"]
    layer = module[0]
    assert isinstance(layer, Fp8Linear) and layer.weight.numel() == 0
    assert layer(numbers(2, 3, 32).to(DEVICE)).shape == (2, 3, 16)


def test_the_faster_one_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_products, "ROWS", 8)
    timed: list[tuple[int, ...]] = []
    times = iter([1.0, 2.0, 2.0, 1.0])  # fp8 wins for the first shape and loses for the second

    def timer(work: Callable[[], object]) -> float:
        out = work()
        assert isinstance(out, torch.Tensor)
        timed.append(tuple(out.shape))
        return next(times)

    told = choose(made(), "measured", timer)
    assert timed == [(8, 16)] * 4  # two shapes, each in both ways
    assert [name for name, kernel in told.items() if kernel == "fp8_linear"] == ["0", "1"]
