"""Why temporal layers stay float: what the report says of each is true, whatever kept it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.report import LayerForm
from quant.temporal import maintain as maintenance
from quant.temporal.discover import UnknownStructure

TIMES = (900.0, 500.0, 100.0)


class Toy(nn.Module):
    """[B, 4] and one or two times [B] to [B, 4]; a linear and a convolution make features of the time."""

    def __init__(self, *, reads: bool = False) -> None:
        super().__init__()
        self.embed, self.spread, self.body = nn.Linear(2, 4), nn.Conv2d(2, 4, 1), nn.Linear(4, 4)
        self.reads = reads

    def forward(self, sample: Tensor, time: Tensor, other: Tensor | None = None) -> Tensor:
        angles = torch.stack([torch.sin(time / 100), torch.cos(time / 100)], dim=1)
        if other is not None:
            angles = angles + other[:, None] / 1000
        if self.reads and float(sample.sum()) > 1e9:
            return sample
        features = self.embed(angles) + self.spread(angles[:, :, None, None])[:, :, 0, 0]
        out: Tensor = self.body(sample) + features
        return out


def made(
    temporal: dict[str, Any], *, scope: str = "all", reads: bool = False, **times: str
) -> tuple[quant.Report, quant.Quantization]:
    """What a recipe makes of the toy; `times` are its arguments of time and their roles."""
    torch.manual_seed(0)
    told = {"name": "x", "scope": scope, "temporal": temporal}
    module, recipe = Toy(reads=reads).eval(), quant.Recipe.model_validate(told)
    roles: Any = times or {"time": "time"}

    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for time in TIMES:
            rows = {"sample": torch.randn(3, 4), **{name: torch.full((3,), time) for name in roles}}
            answer(quant.Call(rows, quant.StepClock.unknown(3), roles=roles))

    found = quant.quantize_(module, recipe, quant.calibrate_for(module, run, recipe))
    return found.report, found


def test_the_recipe_leaves_them() -> None:
    report, _ = made({"maintenance": "float"})
    assert report.kept() == dict.fromkeys(("embed", "spread"), "temporal: left float by the recipe")
    assert report.notes == ()


@pytest.mark.parametrize("way", ["tib", "cache", "select"])
def test_layers_that_a_way_cannot_treat(way: str) -> None:
    report, found = made({"maintenance": way})
    assert report.kept() == {
        "spread": "temporal: a Conv2d is no layer over the last axis"
        if way == "cache"
        else "temporal: only linear layers are quantized among these"
    }
    assert found.plan is not None


def test_several_timesteps() -> None:
    report, _ = made({"maintenance": "tib"}, time="time", other="time")
    why = "there are several timesteps, time, other"
    assert report.kept() == dict.fromkeys(("embed", "spread"), f"temporal: {why}")
    assert report.notes == (f"temporal layers stay float: {why}",)


def test_no_timestep() -> None:
    report, found = made({"maintenance": "cache"}, time="constant")
    assert report.kept() == dict.fromkeys(("embed", "spread"), "temporal: no argument is a timestep")
    assert report.notes == ("temporal layers stay float: no argument is a timestep",)
    assert found.plan is None


def test_a_flow_that_cannot_be_followed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnknownStructure("Toy: lost")

    monkeypatch.setattr(maintenance, "make_plan", fail)
    report, _ = made({"maintenance": "cache"})
    assert report.kept() == dict.fromkeys(("embed", "spread"), "temporal: Toy: lost")
    assert report.notes == ("temporal layers stay float: Toy: lost",)


@pytest.mark.parametrize("scope", ["all", "temporal"])
def test_a_flow_that_cannot_be_followed_at_all(scope: str) -> None:
    report, _ = made({"maintenance": "tib"}, scope=scope, reads=True)
    (note,) = report.notes
    if scope == "all":
        assert note.startswith("temporal layers are treated as all others: Toy: its data flow cannot be followed")
        assert report.kept() == {}
    else:
        assert note.startswith("nothing is quantized, as the recipe's scope is temporal layers and none is known: Toy")
        assert report.quantized_share == 0


def test_a_grid_for_each_step_needs_bits() -> None:
    with pytest.raises(quant.QuantError, match="a grid for each step, but of no number of bits"):
        maintenance._empty(nn.Linear(2, 2), LayerForm(weight_bits=8, kind="stepwise", slots=2))
