"""Quantized layers against slow, literal integer arithmetic; replacement of layers wherever they appear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quant.clock import Moment, MomentHolder
from quant.grid import Affine, to_integers, weight_scales
from quant.layers import (
    FloatLayer,
    InputGrid,
    QuantizedLayer,
    SplitLayer,
    as_float_layer,
    bind,
    empty_like,
    parts_of,
    quantizable_layers,
    replace_layers,
)

GRID = Affine(scale=0.02, zero_point=90)


def quantized(layer: FloatLayer, grid: Affine = GRID) -> QuantizedLayer:
    scales = weight_scales(layer.weight, 8, "max")
    fresh = empty_like(layer, InputGrid(grid.bits))
    assert isinstance(fresh, QuantizedLayer)
    fresh.set_weight(to_integers(layer.weight, scales, 8), scales, layer.bias)
    fresh.set_grid(grid)
    return fresh


def timed(layer: FloatLayer, scales: Tensor) -> QuantizedLayer:
    """The layer with an input scale for each slot and branch, at slots 1, 0 and branches 2, 0 for its two rows."""
    grid = InputGrid(8, slots=scales.shape[0])
    fresh = empty_like(layer, grid)
    assert isinstance(fresh, QuantizedLayer)
    of_weight = weight_scales(layer.weight, 8, "max")
    fresh.set_weight(to_integers(layer.weight, of_weight, 8), of_weight, layer.bias)
    fresh.set_time_grids(scales, GRID.zero_point)
    slot = torch.tensor([1, 0])
    holder = MomentHolder()
    holder.now = Moment(slot, torch.tensor([2, 0]), slot, torch.ones(2, dtype=torch.bool))
    bind(fresh, holder)
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


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(6, 5, 3, padding=1)])
def test_a_scale_that_follows_time_is_the_scale_of_that_row(layer: FloatLayer) -> None:
    torch.manual_seed(0)
    scales = torch.rand(3, 3) * 0.02 + 0.01
    x = torch.randn(2, 4, 7) if isinstance(layer, nn.Linear) else torch.randn(2, 6, 7, 7)
    output = timed(layer.requires_grad_(False), scales)(x)
    for row, scale in enumerate((scales[1, 2], scales[0, 0])):
        alone = quantized(layer, Affine(float(scale), GRID.zero_point))
        torch.testing.assert_close(output[row : row + 1], alone(x[row : row + 1]), rtol=1e-4, atol=1e-5)


def test_outside_of_a_call_no_time_is_known() -> None:
    layer = timed(nn.Linear(2, 2).requires_grad_(False), torch.ones(2, 3))
    layer.holder = MomentHolder()
    with pytest.raises(RuntimeError, match="set the moment first"):
        layer(torch.zeros(2, 2))


@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(7, 5, 3, padding=1)])
def test_parts_of_the_input_have_grids_of_their_own(layer: FloatLayer) -> None:
    torch.manual_seed(0)
    layer.requires_grad_(False)
    x = torch.randn(2, 4, 7) if isinstance(layer, nn.Linear) else torch.randn(2, 7, 6, 6)
    dim = -1 if isinstance(layer, nn.Linear) else 1
    large = torch.cat([x.narrow(dim, 0, 4), 100 * x.narrow(dim, 4, 3)], dim)
    split = empty_like(layer, InputGrid(8), sizes=(4, 3))
    assert isinstance(split, SplitLayer)
    for part, weight, scale in zip(parts_of(split), torch.split(layer.weight, [4, 3], 1), (0.04, 4.0), strict=True):
        of_weight = weight_scales(weight, 8, "max")
        part.set_weight(to_integers(weight, of_weight, 8), of_weight, None)
        part.set_grid(Affine(scale, 128))
    assert layer.bias is not None
    parts_of(split)[0].bias = layer.bias
    assert float((split.weight - layer.weight).abs().max()) < 0.01
    assert float((split(large) - layer(large)).norm() / layer(large).norm()) < 0.03
    with pytest.raises(ValueError, match="cannot be split"):
        empty_like(layer, InputGrid(8), sizes=(4, 4))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.Conv2d(6, 5, 3, padding=1), nn.Linear(7, 5, bias=False)])
def test_tokens_are_integers_of_scales_of_their_own(layer: FloatLayer, bits: int) -> None:
    torch.manual_seed(0)
    fast = empty_like(layer.requires_grad_(False), InputGrid(bits, grain="token"), "cpu")
    assert isinstance(fast, QuantizedLayer)
    scales = weight_scales(layer.weight, 8, "max")
    fast.set_weight(to_integers(layer.weight, scales, 8), scales, layer.bias)
    fast.set_zero_point(2 ** (bits - 1))
    linear, middle = isinstance(layer, nn.Linear), 2 ** (bits - 1) - 1
    x = torch.randn(3, 4, 7) if linear else torch.randn(3, 6, 5, 5)
    x[1] *= 50
    x[2] = 0.0
    dims = (-1,) if linear else (1, 2, 3)
    above, below = x.double().amax(dims, keepdim=True) / middle, -x.double().amin(dims, keepdim=True) / (middle + 1)
    steps = torch.maximum(above, below)
    integers = torch.where(steps > 0, x.double() / steps.clamp(min=1e-300), 0.0).round()
    weight = fast.integers.double()
    products = functional.linear(integers, weight) if linear else functional.conv2d(integers, weight, padding=1)
    along = (-1,) if linear else (-1, 1, 1)
    expected = products * steps * fast.scales.double().view(along)
    if layer.bias is not None:
        expected = expected + layer.bias.double().view(along)
    torch.testing.assert_close(fast(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert dict(fast.named_buffers()).keys() <= {"integers", "scales", "bias", "input_zero_point"}  # no scale of inputs


def test_weights_with_zero_points() -> None:
    fast = empty_like(nn.Linear(3, 2), InputGrid(None), "cpu")
    assert isinstance(fast, QuantizedLayer)
    integers = torch.tensor([[-128, 0, 127], [5, 6, 7]], dtype=torch.int8)
    fast.set_weight(integers, torch.tensor([0.5, 2.0]), None)
    fast.zero_points = torch.tensor([-128, 6], dtype=torch.int8)
    assert fast.weight.tolist() == [[0.0, 64.0, 127.5], [-2.0, 0.0, 2.0]]


def test_float_inputs_are_left_as_they_are() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    fresh = empty_like(layer, InputGrid(None))
    assert isinstance(fresh, QuantizedLayer)
    scales = weight_scales(layer.weight, 8, "max")
    fresh.set_weight(to_integers(layer.weight, scales, 8), scales, layer.bias)
    x = torch.randn(3, 4)
    assert torch.equal(fresh(x), functional.linear(x, fresh.weight, layer.bias))


def test_a_layer_without_an_operation_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        QuantizedLayer((2, 2), False, InputGrid(None), "cpu")  # type: ignore[abstract]


def test_weights_read_back_in_float() -> None:
    layer = nn.Linear(16, 4).requires_grad_(False)
    fast = quantized(layer)
    assert fast.weight.dtype is torch.float32
    assert float((fast.weight - layer.weight).abs().max()) <= float(fast.scales.max()) / 2 * 1.001
    assert sum(parameter.numel() for parameter in fast.parameters()) == 0
    assert next(iter(fast.parameters())).dtype is torch.float32  # which Wan asks for
    assert set(fast.state_dict()) == {"integers", "scales", "input_scale", "input_zero_point", "bias"}


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
