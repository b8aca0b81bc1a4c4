"""Errors of shared scales: against a search on the numbers themselves, and the ranges that follow from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quant
from quant.range_errors import range_errors, time_ranges
from quant.recipe import Activations, Recipe, parse

STEPS = 8
JUMP = 3
"""From this step on the inputs are six times as large."""
BY_RANGE = Activations(steps="ranges", branches="each")


class Two(nn.Module):
    """Two linears, the second of which hardly matters to the output; and one that is fed folded rows."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.loud, self.quiet, self.folded = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, sample: Tensor, time: Tensor) -> Tensor:
        steady = sample / sample.norm(dim=(1, 2), keepdim=True) * 20
        folded: Tensor = self.folded(steady.flatten(0, 1)).reshape(sample.shape)
        return self.loud(sample) + 1e-3 * self.quiet(steady) + 1e-3 * folded  # type: ignore[no-any-return]


def calls() -> list[quant.Call]:
    made = []
    for step in range(STEPS):
        size = 6.0 if step >= JUMP else 1.0
        sample = torch.randn(4, 40, 16, generator=torch.Generator().manual_seed(step)) * size
        sample[2:] *= 1.5
        clock = quant.StepClock(torch.full((4,), step), torch.full((4,), STEPS), torch.tensor([0, 0, 1, 1]))
        time = torch.full((4,), 1000 - 100 * step)
        made.append(quant.Call({"sample": sample, "time": time}, clock, roles={"time": "time"}))
    return made


def run(answer: Callable[[quant.Call], Tensor]) -> None:
    for call in calls():
        answer(call)


@pytest.fixture
def statistics() -> quant.Statistics:
    return quant.calibrate(Two(), run, by_time=True)


def test_errors_of_a_layer_are_those_of_its_numbers(statistics: quant.Statistics) -> None:
    ways = Activations(bits=4, steps="ranges", branches="each")
    errors = range_errors(Two(), {"loud": ways}, statistics)
    order = list(reversed(calls()))  # least timesteps first

    def least(first: int, last: int) -> float:
        """Squared error with the best scale for each branch, zero in the middle."""
        total = 0.0
        for rows in (slice(0, 2), slice(2, 4)):
            x = torch.cat([call.rows["sample"][rows].flatten() for call in order[first : last + 1]])
            scales = [float(x.abs().max()) / 7 * share for share in np.linspace(0.3, 1.1, 60)]
            total += min(float(((x / s).round().clamp(-8, 7) * s - x).square().sum()) for s in scales)
        return total

    alone = sum(least(step, step) for step in range(STEPS))
    for cell in ((0, 0), (0, 4), (2, 6), (4, 5), (5, 7), (0, 7)):
        assert errors[cell] / np.trace(errors) == pytest.approx(least(*cell) / alone, rel=0.08)
    assert (np.tril(errors, -1) == 0).all()


def test_layers_count_by_what_they_do_to_the_output(statistics: quant.Statistics) -> None:
    module = Two()
    both = range_errors(module, {"loud": BY_RANGE, "quiet": BY_RANGE}, statistics)
    loud = range_errors(module, {"loud": BY_RANGE}, statistics)
    np.testing.assert_allclose(both, loud, rtol=1e-3)
    quiet = range_errors(module, {"quiet": BY_RANGE}, statistics)
    assert 0 < np.trace(quiet) < 1e-4 * np.trace(loud)


def test_time_is_divided_where_inputs_change(statistics: quant.Statistics) -> None:
    text = 'name = "x"\n[activations]\nsteps = "ranges"\nbranches = "each"\n[ranges]\nmethod = "dp"\ntolerance = 0.3'
    found = time_ranges(Two(), parse(text, "here"), statistics)
    assert found is not None
    assert found.slots == (tuple(range(JUMP, STEPS)), tuple(range(JUMP)))
    assert "2 of 8 steps" in found.notes[0]


def test_parts_of_a_split_input_count_with_their_weights() -> None:
    module = Two()
    split = quant.calibrate(module, run, by_time=True, splits={"loud": (4, 12)})
    whole = quant.calibrate(module, run, by_time=True)
    apart, together = (range_errors(module, {"loud": BY_RANGE}, seen) for seen in (split, whole))
    np.testing.assert_allclose(apart / np.trace(apart), together / np.trace(together), rtol=0.12, atol=1e-9)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(name="x"),
        Recipe(name="x", activations=Activations(steps="each")),
        Recipe(name="x", activations=BY_RANGE, scope="temporal"),
        parse('name = "x"\n[activations]\nsteps = "ranges"\n[[rules]]\nmatch = ["*"]\nkeep = "float"', "here"),
    ],
)
def test_without_layers_that_follow_ranges_there_are_none(recipe: Recipe, statistics: quant.Statistics) -> None:
    assert time_ranges(Two(), recipe, statistics) is None


def test_layers_that_are_treated_apart_do_not_count(statistics: quant.Statistics) -> None:
    recipe = Recipe(name="x", activations=BY_RANGE)
    assert time_ranges(Two(), recipe, statistics, apart=("loud", "quiet")) is None
    uniform = time_ranges(Two(), recipe, statistics, apart=("loud",))
    assert uniform is not None and len(uniform.slots) == 20


def test_without_timesteps_scales_are_those_of_all_times_and_published_weights_are_refused() -> None:
    def bare(answer: Callable[[quant.Call], Tensor]) -> None:
        for call in calls():
            answer(quant.Call(call.rows, call.clock))

    module, recipe = Two(), Recipe(name="x", activations=BY_RANGE)
    seen = quant.calibrate_for(module, bare, recipe)
    assert time_ranges(module, recipe, seen) is None
    notes = quant.quantize_(module, recipe, seen).report.notes
    assert any("no argument is a timestep" in note for note in notes)
    each = parse(
        'name = "x"\n[weights]\nranges = "each"\n[activations]\ngrain = "token"\n[smoothing]\nmethod = "fixed"', "here"
    )
    with pytest.raises(quant.CalibrationError, match="no time to divide"):
        time_ranges(Two(), each, quant.calibrate_for(Two(), bare, each))


def test_a_quantized_module_has_the_scale_of_each_range(statistics: quant.Statistics) -> None:
    module = Two()
    text = 'name = "x"\n[activations]\nsteps = "ranges"\n[ranges]\ncount = 2'
    report = quant.quantize_(module, parse(text, "here"), statistics).report
    scales = module.loud.input_scale.view(STEPS, 3)  # type: ignore[operator]
    early = [slot for slot, time in enumerate(statistics.schedule) if time >= 500]
    late = [slot for slot in range(STEPS) if slot not in early]
    assert len(scales[early].unique()) == len(scales[late].unique()) == 1
    assert scales[early[0], 0] != scales[late[0], 0]
    layer = next(layer for layer in report.layers if layer.name == "loud")
    assert layer.scheme == "s8 per channel, u8 per tensor and range of steps"
    assert "ranges of time: 2" in report.notes
    assert any("folded" in note and "not the call's rows" in note for note in report.notes)
