"""quantize_: every layer is in the report with its scheme or the reason against it; faults leave the module whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import quant
from quant.backends.call import call_module
from quant.layers import QuantizedLayer


def test_every_layer_is_accounted_for(net: nn.Module, recipe: quant.Recipe, statistics: quant.Statistics) -> None:
    size = sum(parameter.numel() for parameter in net.parameters())
    report = quant.quantize_(net, recipe, statistics).report
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name.keys() == {"first", "norm", "time", "down", "mix", "up", "last", "unused"}
    assert report.bytes_before == 4 * size
    assert report.kept() == {"last": "last layer", "unused": "it never ran while calibrating"}
    assert by_name["norm"].kept_float_because == "GroupNorm has no quantized form"
    for name in ("first", "time", "down", "mix", "up"):
        layer = by_name[name]
        assert isinstance(net.get_submodule(name), QuantizedLayer)
        assert layer.scheme == "s8 per channel, u8 per tensor"
        assert layer.error is not None
        assert 0.0005 < layer.error < 0.03
        assert layer.bytes_after < 0.7 * layer.bytes_before
    assert 0.9 < report.quantized_share < 1


def test_the_quantized_module_stays_near_the_float_one(
    net: nn.Module, recipe: quant.Recipe, statistics: quant.Statistics, call: Callable[..., quant.Call]
) -> None:
    before = call_module(net, call(8, seed=99))
    quant.quantize_(net, recipe, statistics)
    error = quant.relative_error(call_module(net, call(8, seed=99)), before)
    assert 0.001 < error < 0.03


def test_predicted_errors_are_about_the_true_ones(statistics: quant.Statistics, net: nn.Module) -> None:
    recipe = quant.load_recipe("w8a8")
    seen: list[torch.Tensor] = []
    net.get_submodule("down").register_forward_hook(lambda layer, given, answer: seen.extend([given[0], answer]))
    call_module(
        net, quant.Call({"sample": torch.randn(64, 8, 6, 6), "time": torch.arange(64)}, quant.StepClock.unknown(64))
    )
    report = quant.quantize_(net, recipe, statistics).report
    true = quant.relative_error(net.get_submodule("down")(seen[0]), seen[1])
    predicted = next(layer.error for layer in report.layers if layer.name == "down")
    assert predicted == pytest.approx(true, rel=0.4)


def test_nothing_is_replaced_when_one_layer_cannot_be(
    net: nn.Module, recipe: quant.Recipe, statistics: quant.Statistics
) -> None:
    net.get_submodule("up").weight.data[0] = torch.nan  # type: ignore[operator]
    with pytest.raises(quant.QuantError, match="layer up: the weight holds NaN"):
        quant.quantize_(net, recipe, statistics)
    assert not any(isinstance(layer, QuantizedLayer) for layer in net.modules())


def test_statistics_of_another_module_are_refused(recipe: quant.Recipe, statistics: quant.Statistics) -> None:
    with pytest.raises(quant.QuantError, match=r"another module; they differ in .*down"):
        quant.quantize_(nn.Sequential(nn.Linear(2, 2)), recipe, statistics)


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def test_inputs_that_were_always_zero_leave_the_layer_float(recipe: quant.Recipe) -> None:
    module = _Named()
    zeros = quant.Call({"x": torch.zeros(3, 2)}, quant.StepClock.unknown(3))
    statistics = quant.calibrate(module, lambda answer: answer(zeros))
    report = quant.quantize_(module, recipe, statistics).report
    assert report.kept() == {"layer": "its input was always zero while calibrating"}
