"""Sensitivity: estimates match what quantizing one layer at a time shows; the budget is kept and well spent."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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
    def many(answer: Callable[[quant.Call], Tensor]) -> None:
        for seed in range(16):
            answer(call(2, seed))

    seen = quant.calibrate(net, many)
    other = copy.deepcopy(net)
    quant.quantize_(other, coarse, statistics)
    quantized = {name: layer for name, layer in other.named_modules() if isinstance(layer, QuantizedLayer)}
    estimated = output_errors(net, quantized, seen)
    true = true_effects(net, dict(quantized), [call(2, seed) for seed in range(16)])
    assert estimated == output_errors(net, quantized, seen)
    for name in quantized:
        assert estimated[name] ** 0.5 == pytest.approx(true[name] ** 0.5, rel=0.4)
    assert sum(estimated.values()) ** 0.5 == pytest.approx(sum(true.values()) ** 0.5, rel=0.2)
    assert all(not part._forward_hooks for part in net.modules())


def test_statistics_may_come_from_inference_mode(net: nn.Module, call: Callable[..., quant.Call]) -> None:
    with torch.inference_mode():
        made = call(4)
        seen = quant.calibrate(net, lambda answer: answer(made))
    recipe = quant.Recipe(name="x", sensitive=Sensitive(macs=1.0, bytes=1.0, least=0.0))
    report = quant.quantize_(net, recipe, seen).report
    assert not any(isinstance(layer, QuantizedLayer) for layer in net.modules())
    assert all("sensitive: " in reason for name, reason in report.kept().items() if name != "unused")


def test_the_most_sensitive_layers_stay_float_within_the_budget(
    net: nn.Module, statistics: quant.Statistics, call: Callable[..., quant.Call]
) -> None:
    room, test = Sensitive(macs=0.15, bytes=0.5), call(16, seed=77)
    truth = call_module(net, test)
    other = copy.deepcopy(net)
    plain = quant.quantize_(other, quant.Recipe(name="x"), statistics).report
    report = quant.quantize_(net, quant.Recipe(name="x", sensitive=room), statistics).report
    assert 0.85 <= report.quantized_share < plain.quantized_share == 1.0
    kept = [layer for layer in report.layers if "sensitive" in (layer.kept_float_because or "")]
    assert kept
    assert all(layer.output_error is not None and layer.output_error > 0 for layer in kept)
    before, after = (quant.relative_error(call_module(module, test), truth) for module in (other, net))
    assert after < 0.9 * before


def test_layers_whose_scale_follows_time_are_judged_at_their_time(
    net: nn.Module, statistics: quant.Statistics, coarse: quant.Recipe
) -> None:
    quant.quantize_(copied := copy.deepcopy(net), coarse, statistics)
    (name, layer), *_ = [one for one in copied.named_modules() if isinstance(one[1], QuantizedLayer)]
    plain = output_errors(net, {name: layer}, statistics)
    slots, scale = len(statistics.schedule), layer.input_scale
    assert scale is not None
    layer.set_time_grids(scale.expand(slots, 3), int(layer.input_zero_point or 0))
    assert output_errors(net, {name: layer}, statistics)[name] == pytest.approx(plain[name], rel=1e-3)
    layer.set_time_grids(scale.expand(slots, 3) * 8, int(layer.input_zero_point or 0))
    assert output_errors(net, {name: layer}, statistics)[name] > 1.3 * plain[name]


def test_layers_are_chosen_by_effect_per_cost() -> None:
    effects = {"big": 5.0, "cheap": 3.0, "tiny": 0.001, "fat": 4.0}
    costs = {"big": (0.06, 0.0), "cheap": (0.01, 0.01), "tiny": (0.0, 0.0), "fat": (0.01, 0.5)}
    assert worth_keeping(effects, costs, (0.05, 0.1), 0.01) == ["cheap"]
    assert worth_keeping(effects, costs, (0.10, 0.1), 0.01) == ["cheap", "big"]
    assert worth_keeping(effects, costs, (0.10, 0.6), 0.0) == ["tiny", "cheap", "big", "fat"]
    assert worth_keeping(effects, costs, (0.0, 0.6), 0.0) == []
    assert worth_keeping(dict.fromkeys(effects, 0.0), costs, (1.0, 1.0), 0.0) == []
