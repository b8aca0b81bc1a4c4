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


class _Turning(nn.Module):
    """[B, 4, 3] to the same; three of its layers see tokens lead, not rows."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(3, 3)
        self.turned = nn.ModuleList([nn.Linear(3, 3) for _ in range(6)])

    def forward(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        turned = sample.transpose(0, 1) * time[:, None] / 1000
        out: torch.Tensor = self.plain(sample) + sum(layer(turned) for layer in self.turned).transpose(0, 1)
        return out


def _turning(recipe: quant.Recipe, timed: bool = True) -> quant.Report:
    torch.manual_seed(0)
    module, roles = _Turning().eval(), {"time": "time" if timed else "constant"}

    def run(answer: Callable[[quant.Call], torch.Tensor]) -> None:
        for step, time in enumerate((900, 500)):
            clock = quant.StepClock(*(torch.full((6,), value) for value in (step, 2, step)))
            rows = {"sample": torch.randn(6, 4, 3), "time": torch.full((6,), time)}
            answer(quant.Call(rows, clock, roles=roles))  # type: ignore[arg-type]

    return quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe)).report


@pytest.mark.parametrize("own", [("step", "branch"), ("step",), ("branch",)])
def test_the_report_says_which_scales_follow_time_and_which_do_not(own: tuple[str, ...]) -> None:
    ways = {"steps": "each" if "step" in own else "shared", "branches": "each" if "branch" in own else "shared"}
    report = _turning(quant.Recipe.model_validate({"name": "x", "activations": ways}))
    schemes = {layer.name: layer.scheme for layer in report.layers}
    still = [f"turned.{index}" for index in range(6)]
    assert schemes.pop("plain") == " and ".join(["s8 per channel, u8 per tensor", *own])
    assert schemes == dict.fromkeys(still, "s8 per channel, u8 per tensor")
    assert report.notes == (
        "layers with one input scale for all times, although the recipe asks for more: "
        f"6 ({', '.join(still[:5])} and 1 more); the first dimension of their inputs is not the call's rows",
    )


def test_without_a_timestep_no_scale_follows_it() -> None:
    report = _turning(quant.Recipe.model_validate({"name": "x", "activations": {"steps": "each"}}), timed=False)
    assert {layer.scheme for layer in report.layers} == {"s8 per channel, u8 per tensor"}
    assert any("(plain); no argument is a timestep" in note for note in report.notes)


class _Paced(nn.Module):
    """Two linears: the input of one grows with the timestep, that of the other does not know it."""

    def __init__(self) -> None:
        super().__init__()
        self.moving, self.still = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, sample: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.moving(sample * time[:, None] / 100) + self.still(sample)
        return out


@pytest.mark.parametrize(
    ("least", "following"), [(0.0, {"moving", "still"}), (0.2, {"moving"}), (1.0, set[str]())], ids=str
)
def test_scales_follow_time_where_that_gains_enough(least: float, following: set[str]) -> None:
    torch.manual_seed(0)
    module = _Paced().eval()

    def run(answer: Callable[[quant.Call], torch.Tensor]) -> None:
        for step, time in enumerate((900, 300, 30)):
            clock = quant.StepClock(*(torch.full((64,), value) for value in (step, 3, 0)))
            rows = {"sample": torch.randn(64, 8), "time": torch.full((64,), time)}
            answer(quant.Call(rows, clock, roles={"time": "time"}))

    ways = {"bits": 4, "steps": "each", "least_gain": least}
    recipe = quant.Recipe.model_validate({"name": "x", "activations": ways})
    made = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
    assert {name for name, form in made.forms.items() if form.slots} == following
    told = [note for note in made.report.notes if f"less than {least:.0%} of their error" in note]
    assert bool(told) == (len(following) < 2) and all(name not in note for note in told for name in following)


@pytest.mark.parametrize("bits", [8, 32])
def test_nothing_is_noted_where_no_scale_is_to_follow_time(bits: int) -> None:
    ways = {"bits": bits, "steps": "each" if bits == 32 else "shared"}
    report = _turning(quant.Recipe.model_validate({"name": "x", "activations": ways}))
    text = "s8 per channel, float inputs" if bits == 32 else "s8 per channel, u8 per tensor"
    assert {layer.scheme for layer in report.layers} == {text}
    assert report.notes == ()


def test_the_report_notes_what_reconstruction_came_to() -> None:
    rounding = {"method": "adaround", "iterations": 3, "samples": 12, "grain": "layer"}
    report = _turning(quant.Recipe.model_validate({"name": "x", "rounding": rounding}))
    learned, left = report.notes
    assert learned.startswith("units that were reconstructed: 1; relative errors left in their outputs: ")
    assert learned.endswith(" at most, of plain")
    assert left.startswith("units that were not reconstructed: 6 (turned.0: its arguments or outputs cannot be cut")
    assert left.endswith(" and 1 more)")
