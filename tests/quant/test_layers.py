"""Quantized layers against slow, literal integer arithmetic; replacement of layers wherever they appear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.grid import Affine, to_integers, weight_scales
from quant.layers import (
    FloatLayer,
    QuantizedLayer,
    as_float_layer,
    empty_like,
    first_tensor,
    quantizable_layers,
    replace_layers,
)

GRID = Affine(scale=0.02, zero_point=90)


def quantized(layer: FloatLayer, grid: Affine = GRID) -> QuantizedLayer:
    scales = weight_scales(layer.weight, 8, "max")
    fresh = empty_like(layer, grid.bits)
    fresh.set_values(to_integers(layer.weight, scales, 8), scales, layer.bias, grid)
    return fresh


def integer_input(x: Tensor) -> Tensor:
    return (torch.clamp(torch.round(x / GRID.scale) + GRID.zero_point, 0, 255) - GRID.zero_point).double()


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_is_an_integer_product(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 24, bias=bias).requires_grad_(False), torch.randn(2, 5, 40)
    fast = quantized(layer)
    products = integer_input(x) @ fast.integers.double().T  # exact: whole numbers below 2**53
    expected = products * (GRID.scale * fast.scales.double()) + (layer.bias.double() if bias else 0.0)
    torch.testing.assert_close(fast(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 1, 1), (2, 1, 1), (1, 0, 4), (2, (0, 1), 1)])
def test_a_convolution_is_an_integer_convolution(stride: int, padding: int, groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, stride=stride, padding=padding, groups=groups).requires_grad_(False)
    x, fast = torch.randn(2, 8, 7, 7), quantized(layer)
    sums = functional.conv2d(integer_input(x), fast.integers.double(), None, stride, padding, 1, groups)
    assert layer.bias is not None
    expected = sums * (GRID.scale * fast.scales.double())[:, None, None] + layer.bias.double()[:, None, None]
    torch.testing.assert_close(fast(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_weights_read_back_in_float() -> None:
    layer = nn.Linear(16, 4).requires_grad_(False)
    fast = quantized(layer)
    assert fast.weight.dtype is torch.float32
    assert float((fast.weight - layer.weight).abs().max()) <= float(fast.scales.max()) / 2 * 1.001
    assert list(fast.parameters()) == []


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    shared = nn.Linear(4, 4)
    module = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert list(quantizable_layers(module)) == ["a"]
    fresh = quantized(shared)
    replace_layers(module, {"a": fresh})
    assert module["a"] is fresh
    assert module.get_submodule("b.0") is fresh
    with pytest.raises(KeyError):
        replace_layers(module, {"c": fresh})


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "layer",
    [
        Doubled(2, 2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.ReLU(),
    ],
)
def test_what_has_no_quantized_form_is_left_alone(layer: nn.Module) -> None:
    assert as_float_layer(layer) is None


def test_the_tensor_of_an_output() -> None:
    tensor = torch.ones(2)
    for output in (tensor, (tensor, 3), [tensor], {"sample": tensor}):
        assert first_tensor(output) is tensor
    with pytest.raises(TypeError, match="must return a tensor first, not str"):
        first_tensor("sample")
