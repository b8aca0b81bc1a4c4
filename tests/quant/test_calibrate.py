"""Calibration: counts what every layer was fed, whole and by time, keeps calls, cleans up, names the layer at fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quant
from quant.calibrate import calibrate
from quant.observe import Histogram
from quant.samples import SampleWish
from quant.slots import slots_of

Run = Callable[[Callable[[quant.Call], Tensor]], None]


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def timed_call(step: int, times: list[float], branches: list[int]) -> quant.Call:
    rows = len(times)
    clock = quant.StepClock(torch.full((rows,), step), torch.full((rows,), 9), torch.tensor(branches))
    sample = torch.randn(rows, 8, 6, 6, generator=torch.Generator().manual_seed(step)) + step
    return quant.Call({"sample": sample, "time": torch.tensor(times)}, clock, roles={"time": "time"})


def test_every_layer_is_counted(net: nn.Module, run: Run) -> None:
    statistics = calibrate(net, run)
    assert statistics.rows == 32
    assert statistics.layers.keys() == {"first", "time", "down", "mix", "up", "last", "unused"}
    first = statistics.layers["first"]
    assert first.inputs.total == 32 * 8 * 36
    assert first.macs == 32 * 36 * 32 * 8 * 9
    assert statistics.layers["mix"].macs == 32 * 9 * 64 * 64
    assert statistics.layers["unused"].inputs.total == 0
    assert all(layer.each == {} and layer.parts == [] for layer in statistics.layers.values())
    assert statistics.samples is None
    assert hooks(net) == 0


def test_cells_of_time_and_branch_are_counted_apart(net: nn.Module) -> None:
    calls = [timed_call(0, [9.0] * 4, [0, 0, 1, 1]), timed_call(1, [7.0, 9.0, 7.0], [1, 0, 1])]

    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for call in calls:
            answer(call)

    statistics = calibrate(net, run, by_time=True)
    assert statistics.schedule == (9.0, 7.0)
    first = statistics.layers["first"]
    assert {cell: own.total // (8 * 36) for cell, own in first.each.items()} == {(0, 0): 3, (0, 1): 2, (1, 1): 2}
    fed = torch.cat([calls[0].rows["sample"][:2], calls[1].rows["sample"][1:2]])
    alone = Histogram(bins=512)
    alone.add(fed)
    cell = first.each[0, 0]
    assert (cell.low, cell.high, cell.exponent, cell.start) == (alone.low, alone.high, alone.exponent, alone.start)
    assert np.array_equal(cell.counts, alone.counts)
    for layer in statistics.layers.values():
        assert layer.inputs.total == sum(own.total for own in layer.each.values())


def test_by_time_changes_nothing_of_the_whole(net: nn.Module, run: Run) -> None:
    plain, timed = calibrate(net, run), calibrate(net, run, by_time=True)
    for name, layer in plain.layers.items():
        assert np.array_equal(layer.inputs.counts, timed.layers[name].inputs.counts)
        assert layer.macs == timed.layers[name].macs


def test_scales_cannot_follow_time_where_rows_do_not_lead() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Linear(3, 3)
            self.frames = nn.Linear(3, 3)

        def forward(self, sample: Tensor, time: Tensor) -> Tensor:
            frames: Tensor = self.frames(self.rows(sample).flatten(0, 1))
            return frames.reshape(sample.shape)

    call = quant.Call(
        {"sample": torch.ones(2, 4, 3), "time": torch.tensor([1, 1])},
        quant.StepClock.unknown(2),
        roles={"time": "time"},
    )
    layers = calibrate(Folded(), lambda answer: answer(call), by_time=True).layers
    assert layers["rows"].rows_lead
    assert not layers["frames"].rows_lead
    assert layers["frames"].inputs.total == 24


def test_tokens_with_times_of_their_own_stand_at_the_latest() -> None:
    times = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 3.0]])
    call = quant.Call({"time": times}, quant.StepClock.unknown(2), roles={"time": "time"})

    class Any(nn.Module):
        def forward(self, time: Tensor) -> Tensor:
            return time

    schedule = calibrate(Any(), lambda answer: answer(call)).schedule
    assert schedule == (0.0, 5.0, 3.0)
    assert slots_of(call, {time: slot for slot, time in enumerate(schedule)}).tolist() == [1, 2]


def test_parts_of_split_layers_are_counted_apart(net: nn.Module, run: Run) -> None:
    layers = calibrate(net, run, splits={"down": (20, 12), "mix": (1, 63)}, by_time=True).layers
    down = layers["down"]
    assert [part.inputs.total for part in down.parts] == [32 * 20 * 36, 32 * 12 * 36]
    assert [part.inputs.total for part in layers["mix"].parts] == [32 * 9, 32 * 9 * 63]
    together = Histogram()
    for part in down.parts:
        together.merge(part.inputs)
        assert part.each.keys() == down.each.keys() != set()
    assert np.array_equal(together.counts, down.inputs.counts)


@pytest.mark.parametrize(("name", "sizes"), [("down", (20, 13)), ("nowhere", (1, 1)), ("norm", (16, 16))])
def test_splits_must_fit_a_layer(net: nn.Module, run: Run, name: str, sizes: tuple[int, ...]) -> None:
    with pytest.raises(quant.CalibrationError, match="input channels to be split into"):
        calibrate(net, run, splits={name: sizes})


def test_calls_are_kept_evenly_and_up_to_a_bound(net: nn.Module) -> None:
    def run(answer: Callable[[quant.Call], Tensor]) -> None:
        for step in range(70):
            sample = torch.full((4, 8, 6, 6), float(step))
            sample[2:] += 0.5  # the second half of the batch
            answer(quant.Call({"sample": sample, "time": torch.tensor([1, 2, 3, 4])}, quant.StepClock.unknown(4)))

    calls = calibrate(net, run).calls
    assert [int(kept.rows["sample"][0, 0, 0, 0]) for kept in calls] == list(range(0, 70, 8))
    assert {float(kept.rows["sample"][0, 0, 0, 0]) % 1 for kept in calls} == {0.0, 0.5}
    assert all(kept.rows["sample"].shape == (1, 8, 6, 6) and kept.rows["time"].shape == (1,) for kept in calls)


def test_samples_are_kept_on_demand(net: nn.Module, run: Run) -> None:
    samples = calibrate(net, run, samples=SampleWish(7), seed=3).samples
    assert samples is not None
    assert samples.count == 7


def test_more_calls_give_samples_and_nothing_else(net: nn.Module, run: Run) -> None:
    def more(answer: Callable[[quant.Call], Tensor]) -> None:
        assert hooks(net) == 0
        asked.append(1)
        run(answer)
        run(lambda call: answer(replace(call, rows={**call.rows, "sample": call.rows["sample"] + 100.0})))

    asked = list[int]()
    plain, both = (calibrate(net, run, samples=SampleWish(40), more=extra, seed=3) for extra in (None, more))
    assert not asked, "not before samples are asked for"
    assert both.rows == plain.rows
    assert {name: seen.inputs.total for name, seen in both.layers.items()} == {
        name: seen.inputs.total for name, seen in plain.layers.items()
    }
    assert plain.samples is not None and both.samples is not None
    assert not any((call.rows["sample"] > 50).any() for call in plain.samples.calls)
    assert any((call.rows["sample"] > 50).any() for call in both.samples.calls)
    assert both.samples.count == min(40, 3 * plain.rows)
    assert len(asked) == 1


def test_more_calls_keep_to_the_schedule(net: nn.Module, run: Run) -> None:
    def later(answer: Callable[[quant.Call], Tensor]) -> None:
        run(lambda call: answer(replace(call, rows={**call.rows, "time": call.rows["time"] + 1000})))

    samples = calibrate(net, run, samples=SampleWish(4), more=later).samples
    assert samples is not None
    with pytest.raises(quant.CalibrationError, match="no observed call has"):
        _ = samples.calls


def test_statistics_may_come_from_inference_mode(net: nn.Module, call: Callable[..., quant.Call]) -> None:
    with torch.inference_mode():
        made = call(4)
        statistics = calibrate(net, lambda answer: answer(made), samples=SampleWish(2))
    assert statistics.samples is not None
    assert not any(
        tensor.is_inference()
        for kept in (*statistics.calls, *statistics.samples.calls)
        for tensor in kept.rows.values()
    )


def test_hooks_are_removed_when_the_run_fails(net: nn.Module) -> None:
    def broken(answer: object) -> None:
        assert hooks(net) > 0
        raise RuntimeError("out of prompts")

    with pytest.raises(RuntimeError, match="out of prompts"):
        calibrate(net, broken)
    assert hooks(net) == 0


def test_a_run_that_never_calls_is_an_error(net: nn.Module) -> None:
    with pytest.raises(quant.CalibrationError, match="never called"):
        calibrate(net, lambda answer: None)


def test_infinite_inputs_name_the_layer(net: nn.Module, call: Callable[..., quant.Call]) -> None:
    bad = call(2)
    bad.rows["sample"][0, 0, 0, 0] = torch.inf
    with pytest.raises(quant.CalibrationError, match="layer first: the input holds NaN or infinity"):
        calibrate(net, lambda answer: answer(bad))
    assert hooks(net) == 0
