"""Sensitivity: estimates match what quantizing one layer at a time shows; the budget is kept and well spent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import quant
from quant.backends.call import call_module
from quant.layers import QuantizedLayer
from quant.recipe import Sensitive, parse
from quant.sensitivity import output_errors, worth_keeping


@pytest.fixture
def coarse() -> quant.Recipe:
    """4-bit weights, so that effects stand out."""
    return parse('name = "coarse"\n[weights]\nbits = 4', "tests")


def true_effects(net: nn.Module, quantized: dict[str, nn.Module], calls: list[quant.Call]) -> dict[str, float]:
    """Mean squared relative error of the output with one layer quantized at a time."""
    found = {}
    for name, layer in quantized.items():
        errors = []
        for call in calls:
            before = call_module(net, call)
            old = net.get_submodule(name)
            setattr(net, name, layer)
            errors.append(quant.relative_errors(call_module(net, call), before).square().mean())
            setattr(net, name, old)
        found[name] = float(torch.stack(errors).mean())
    return found


def test_estimates_match_one_layer_at_a_time(
    net: nn.Module, coarse: quant.Recipe, statistics: quant.Statistics, call: Callable[..., quant.Call]
) -> None:
    def many(module: nn.Module) -> None:
        for seed in range(16):
            call_module(module, call(2, seed))

    calls = quant.calibrate(net, many).calls
    copy = type(net)().eval().requires_grad_(False)
    copy.load_state_dict(net.state_dict())
    quant.quantize_(copy, coarse, statistics)
    quantized = {name: layer for name, layer in copy.named_modules() if isinstance(layer, QuantizedLayer)}
    estimated = output_errors(net, quantized, calls)
    true = true_effects(net, dict(quantized), [call(2, seed) for seed in range(16)])
    assert estimated == output_errors(net, quantized, calls)
    for name in quantized:
        assert estimated[name] ** 0.5 == pytest.approx(true[name] ** 0.5, rel=0.4)
    assert sum(estimated.values()) ** 0.5 == pytest.approx(sum(true.values()) ** 0.5, rel=0.2)
    assert all(not part._forward_hooks for part in net.modules())


def test_statistics_may_come_from_inference_mode(net: nn.Module, call: Callable[..., quant.Call]) -> None:
    def run(module: nn.Module) -> None:
        with torch.inference_mode():
            call_module(module, call(4))

    recipe = quant.Recipe(name="x", sensitive=Sensitive(macs=1.0, bytes=1.0, least=0.0))
    report = quant.quantize_(net, recipe, quant.calibrate(net, run))
    assert not any(isinstance(layer, QuantizedLayer) for layer in net.modules())
    assert all("sensitive: " in reason for name, reason in report.kept().items() if name != "unused")


def test_the_most_sensitive_layers_stay_float_within_the_budget(
    net: nn.Module, statistics: quant.Statistics, call: Callable[..., quant.Call]
) -> None:
    room, test = Sensitive(macs=0.15, bytes=0.5), call(16, seed=77)
    truth = call_module(net, test)
    copy = type(net)().eval().requires_grad_(False)
    copy.load_state_dict(net.state_dict())
    plain = quant.quantize_(copy, quant.Recipe(name="x"), statistics)
    report = quant.quantize_(net, quant.Recipe(name="x", sensitive=room), statistics)
    assert 0.85 <= report.quantized_share < plain.quantized_share == 1.0
    kept = [layer for layer in report.layers if "sensitive" in (layer.kept_float_because or "")]
    assert kept
    assert all(layer.output_error is not None and layer.output_error > 0 for layer in kept)
    before, after = (quant.relative_error(call_module(module, test), truth) for module in (copy, net))
    assert after < 0.9 * before


def test_layers_are_chosen_by_effect_per_cost() -> None:
    effects = {"big": 5.0, "cheap": 3.0, "tiny": 0.001, "fat": 4.0}
    costs = {"big": (0.06, 0.0), "cheap": (0.01, 0.01), "tiny": (0.0, 0.0), "fat": (0.01, 0.5)}
    assert worth_keeping(effects, costs, (0.05, 0.1), 0.01) == ["cheap"]
    assert worth_keeping(effects, costs, (0.10, 0.1), 0.01) == ["cheap", "big"]
    assert worth_keeping(effects, costs, (0.10, 0.6), 0.0) == ["tiny", "cheap", "big", "fat"]
    assert worth_keeping(effects, costs, (0.0, 0.6), 0.0) == []
    assert worth_keeping(dict.fromkeys(effects, 0.0), costs, (1.0, 1.0), 0.0) == []
