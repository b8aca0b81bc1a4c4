"""Calibration: counts what every layer was fed, cleans up after errors, names the layer at fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import quant
from quant.backends.call import call_module


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_every_layer_is_counted(net: nn.Module, run: Callable[[nn.Module], None]) -> None:
    statistics = quant.calibrate(net, run)
    assert statistics.rows == 32
    assert statistics.layers.keys() == {"first", "time", "down", "mix", "up", "last", "unused"}
    first = statistics.layers["first"]
    assert first.inputs.total == 32 * 8 * 36
    assert first.macs == 32 * 36 * 32 * 8 * 9
    assert statistics.layers["mix"].macs == 32 * 9 * 64 * 64
    assert statistics.layers["unused"].inputs.total == 0
    assert hooks(net) == 0


def test_calls_are_kept_evenly_and_up_to_a_bound(net: nn.Module, call: Callable[..., quant.Call]) -> None:
    def run(module: nn.Module) -> None:
        for step in range(70):
            sample = torch.full((4, 8, 6, 6), float(step))
            sample[2:] += 0.5  # the second half of the batch
            module(sample, time=torch.tensor([1, 2, 3, 4]))

    calls = quant.calibrate(net, run).calls
    assert [int(kept.arguments[0][0, 0, 0, 0]) for kept in calls] == list(range(0, 70, 8))
    assert {float(kept.arguments[0][0, 0, 0, 0]) % 1 for kept in calls} == {0.0, 0.5}
    assert all(kept.arguments[0].shape == (1, 8, 6, 6) and kept.keywords["time"].shape == (1,) for kept in calls)


def test_hooks_are_removed_when_the_run_fails(net: nn.Module) -> None:
    def broken(module: nn.Module) -> None:
        assert hooks(module) > 0
        raise RuntimeError("out of prompts")

    with pytest.raises(RuntimeError, match="out of prompts"):
        quant.calibrate(net, broken)
    assert hooks(net) == 0


def test_a_run_that_never_calls_is_an_error(net: nn.Module) -> None:
    with pytest.raises(quant.CalibrationError, match="never called"):
        quant.calibrate(net, lambda module: None)


def test_infinite_inputs_name_the_layer(net: nn.Module, call: Callable[..., quant.Call]) -> None:
    bad = call(2)
    bad.rows["sample"][0, 0, 0, 0] = torch.inf
    with pytest.raises(quant.CalibrationError, match="layer first: the input holds NaN or infinity"):
        quant.calibrate(net, lambda module: call_module(module, bad))
    assert hooks(net) == 0
