"""Exactness: models without their temporal layers give the same bits; what a source computes, keeps, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from quant.backends.call import Call
from quant.errors import BackendError, QuantError
from quant.temporal.discover import discover
from quant.temporal.features import FeatureSource, TemporalPlan, make_plan
from quant.temporal.program import TemporalProgram
from tests.quant.temporal.models import (
    MODELS,
    SCHEDULE,
    TOKENS,
    Tiny,
    cut,
    make,
    make_call,
    opened,
    run,
    run_at,
    skeleton,
)


def prepared(tiny: Tiny, rows: int | None, *, exact: bool = True) -> tuple[nn.Module, FeatureSource, TemporalPlan]:
    """The cut model, with a source that opens a skeleton of the temporal layers alone."""
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    bare = skeleton(tiny.module, [leaf.name for leaf in leaves])
    source = FeatureSource(plan, lambda: TemporalProgram(bare, leaves), exact=exact)
    return cut(tiny, program, plan, example, rows), source, plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_a_cut_model_gives_the_same_bits(name: str, rows: int, dtype: torch.dtype) -> None:
    tiny = make(name, dtype)
    without, source, plan = prepared(tiny, rows)
    assert sum(p.numel() for p in tiny.module.parameters()) - sum(p.numel() for p in without.parameters()) == (
        plan.freed + plan.hoisted
    )
    for time in (250.0, 0.0):
        call = tiny.call(torch.full((rows,), time))
        assert torch.equal(run_at(without, call, source.moment(call)), run(tiny.module, call))
    assert source.fallbacks == 0
    call = tiny.call(torch.full((rows,), 123.0))
    assert torch.equal(run_at(without, call, source.moment(call)), run(tiny.module, call))
    assert source.fallbacks == (0 if name == "sd3" else rows)


def test_rows_of_different_steps() -> None:
    tiny = make("unet")
    without, source, _ = prepared(tiny, 4)
    call = tiny.call(torch.tensor([999.0, 0.0, 77.0, 5.0]))
    moment = source.moment(call)
    assert moment.slot.tolist() == [4, 0, 1, 1]
    assert moment.known.tolist() == [True, True, False, True]
    assert torch.equal(run_at(without, call, moment), run(tiny.module, call))
    assert source.fallbacks == 1


def test_tokens_with_timesteps_of_their_own() -> None:
    tiny = make("wan")
    times = torch.full((1, TOKENS), 600.0)
    times[:, : TOKENS // 2] = 0.0
    without, source, _ = prepared(tiny, TOKENS)
    call = tiny.call(times)
    moment = source.moment(call)
    assert moment.slot.shape == (1, TOKENS)
    assert moment.row.tolist() == [3]
    assert torch.equal(run_at(without, call, moment), run(tiny.module, call))
    call = tiny.call(times + 1)
    moment = source.moment(call)
    assert moment.features is not None
    assert moment.features.shape[:2] == (1, TOKENS)
    assert torch.equal(run_at(without, call, moment), run(tiny.module, call))


def test_other_constants_are_computed() -> None:
    tiny = make("dit")
    without, source, plan = prepared(tiny, 2)
    assert plan.constants == {"class_labels": (3.0,)}
    call = tiny.call(torch.full((2,), 250.0))
    call = replace(call, rows={**call.rows, "class_labels": torch.tensor([3, 8])})
    moment = source.moment(call)
    assert moment.known.tolist() == [True, False]
    assert torch.equal(run_at(without, call, moment), run(tiny.module, call))
    assert source.fallbacks == 1


class Counting(TemporalProgram):
    """A program that remembers how many rows it was run at."""

    def __init__(self, module: nn.Module, leaves: Sequence[object]) -> None:
        super().__init__(module, leaves)  # type: ignore[arg-type]
        self.rows: list[int] = []

    def run(self, call: Call, *arguments: object, **keywords: object) -> dict[str, Tensor]:
        self.rows.append(call.count)
        return super().run(call, *arguments, **keywords)  # type: ignore[arg-type]


def test_a_request_is_hoisted_at_once_and_kept() -> None:
    tiny = make("sd3")
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    counting = Counting(tiny.module, leaves)
    source = FeatureSource(plan, lambda: counting)
    without = cut(tiny, program, plan, example, None)
    for time in SCHEDULE:
        call = tiny.call(torch.full((2,), time))
        assert torch.allclose(run_at(without, call, source.moment(call)), run(tiny.module, call), atol=1e-5)
    assert counting.rows == [2 * len(SCHEDULE)]
    assert (source.hoists, source.fallbacks) == (2, 0)
    source.moment(tiny.call(torch.full((2,), 321.0)))
    assert counting.rows == [2 * len(SCHEDULE), 2]
    other = tiny.call(torch.full((2,), 5.0))
    other = replace(other, rows={**other.rows, "pooled_projections": other.rows["pooled_projections"] + 1})
    source.moment(other)
    assert counting.rows[-1] == 2 * len(SCHEDULE)
    assert source.hoists == 4


def test_what_is_kept_is_bounded_and_found_again() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    counting = Counting(tiny.module, leaves)
    row = 4 * plan.width
    source = FeatureSource(plan, lambda: counting, capacity=3 * row)
    assert source.bytes == 0
    for time in (1.0, 2.0, 3.0, 1.0, 4.0, 1.0, 2.0):  # 2 is the oldest when 4 comes
        source.moment(tiny.call(torch.tensor([time])))
    assert len(counting.rows) == 5
    weights = sum(tensor.nbytes for layer in counting.layers().values() for tensor in layer.parameters())
    assert source.bytes == 3 * row + weights
    many = tiny.call(torch.arange(20, 28).float())
    assert source.moment(many).features is not None
    assert counting.rows[-1] == 8
    source.close()
    assert source.bytes == 0
    with pytest.raises(BackendError, match="was closed"):
        source.moment(many)


def test_tables_answer_without_opening_anything() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    source = FeatureSource(plan, None)
    moment = source.moment(tiny.call(torch.tensor([600.0])))
    assert moment.features is None
    assert source.bytes == 0
    with pytest.raises(QuantError, match="not among those that this artifact has tables for"):
        source.moment(tiny.call(torch.tensor([601.0])))
    with pytest.raises(QuantError, match="has no timestep"):
        source.moment(make_call({"sample": torch.ones(1, 3)}))


def test_scales_alone_take_the_nearest_slot() -> None:
    plan = TemporalPlan(time="timestep", schedule=(900.0, 500.0, 100.0))
    times = torch.tensor([2000.0, 701.0, 699.0, 500.0, -5.0])
    moment = FeatureSource(plan, None).moment(make_call({"sample": torch.ones(5, 3), "timestep": times}))
    assert moment.row.tolist() == [0, 0, 1, 1, 2]
    assert moment.known.tolist() == [False, False, False, True, False]


def test_further_times_must_be_those_of_the_slot() -> None:
    plan = TemporalPlan(time="t", schedule=(900.0, 500.0), times={"r": (500.0, 0.0)})
    rows = {"t": torch.tensor([900.0, 900.0]), "r": torch.tensor([500.0, 0.0])}
    source = FeatureSource(plan, None)
    assert source.moment(make_call(rows)).known.tolist() == [True, False]


@pytest.mark.parametrize("schedule", [(), (1.0, 1.0), (1.0, float("nan"))])
def test_a_schedule_must_be_sound(schedule: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        TemporalPlan(time="timestep", schedule=schedule)


def test_a_plan_survives_its_manifest() -> None:
    leaves, program, example = opened(make("sd3"))
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    assert TemporalPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.pooled == ("pooled_projections",)
    assert (plan.freed, plan.hoisted) == (0, plan.parameters)
    assert {one.strategy for one in plan.lookups} == {"hoist"}
    offsets = [one.offset for one in plan.lookups]
    assert offsets == [sum(one.width for one in plan.lookups[:index]) for index in range(len(offsets))]


def test_what_a_kept_layer_reads_is_kept() -> None:
    leaves, program, example = opened(make("unet"))
    first = next(leaf.name for leaf in leaves if leaf.frontier)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE}, choices={first: "tib"}, storages={first: "int8"})
    assert {one.name: one.reason for one in plan.kept} == {
        first: "it is quantized",
        "time_embedding.linear_1": "a layer that is kept reads it",
        "time_embedding.linear_2": "a layer that is kept reads it",
    }
    assert not plan.stubs
    assert plan.freed == sum(leaf.parameters for leaf in leaves if leaf.frontier and leaf.name != first)


@pytest.mark.parametrize("name", MODELS)
def test_a_selected_layer_that_another_reads_is_looked_up_and_not_kept_as_well(name: str) -> None:
    leaves, program, example = opened(make(name))
    frontier = {leaf.name for leaf in leaves if leaf.frontier}
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE}, choices=dict.fromkeys(frontier, "select"))
    assert {one.name for one in plan.lookups} == frontier
    assert {one.name for one in plan.kept} == {leaf.name for leaf in leaves} - frontier


def test_broken_weights_are_told() -> None:
    tiny = make("unet")
    leaves, program, example = opened(tiny)
    tiny.module.get_parameter("time_embedding.linear_2.bias")[0] = float("nan")
    with pytest.raises(QuantError, match="puts out NaN or infinity"):
        make_plan(program, leaves, example, {"timestep": SCHEDULE})


class ByToken(nn.Module):
    """[B, L] times: a leaf for each token beside one for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.by_token, self.by_row = nn.Linear(2, 3), nn.Linear(1, 3)

    def forward(self, sample: Tensor, timestep: Tensor, guidance: Tensor, return_dict: bool = True) -> Tensor:
        tokens: Tensor = self.by_token(timestep[:, :, None] * torch.tensor([0.01, 0.02]))
        result: Tensor = sample + tokens.sum(1) + self.by_row(guidance[:, None])
        return result


def test_a_leaf_by_row_among_timesteps_by_token_is_kept() -> None:
    module = ByToken().requires_grad_(False)
    rows = {"sample": torch.ones(1, 3), "timestep": torch.full((1, 4), 5.0), "guidance": torch.ones(1)}
    leaves = discover(module, make_call(rows))
    plan = make_plan(TemporalProgram(module, leaves), leaves, make_call(rows), {"timestep": SCHEDULE})
    assert [one.name for one in plan.lookups] == ["by_token"]
    assert {one.name: one.reason for one in plan.kept} == {
        "by_row": "it does not have a row for each of a call's timesteps"
    }


class Odd(nn.Module):
    """Leaves that no table can hold: one that runs twice, one that mixes rows."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.twice, self.mixes, self.frames = nn.Linear(2, 8), nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Tensor:
        h = self.h(timestep[:, None] * torch.tensor([0.01, 0.02])).sin()
        frames = self.frames(h.repeat_interleave(4, 0)).reshape(-1, 4, 3).sum(1)
        result: Tensor = sample + self.twice(h) + self.twice(h * 2) + self.mixes(h.mean(0, keepdim=True)) + frames
        return result


def test_leaves_that_no_table_can_hold_are_kept_with_reasons() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Odd().requires_grad_(False)
    tiny = Tiny(module, lambda times: make_call({"sample": torch.ones(len(times), 3), "timestep": times}))
    example = tiny.call(torch.tensor([5.0]))
    leaves = discover(module, example)
    program = TemporalProgram(module, leaves)
    plan = make_plan(program, leaves, example, {"timestep": SCHEDULE})
    reasons = {one.name: one.reason for one in plan.kept}
    assert reasons.keys() == {"h", "twice", "mixes"}
    assert "runs 2 times" in reasons["twice"]
    assert "does not follow the rows" in reasons["mixes"]
    (frames,) = plan.lookups
    assert (frames.name, frames.width, frames.spread) == ("frames", 3, True)
    call = tiny.call(torch.tensor([5.0, 999.0]))
    without = cut(tiny, program, plan, example, None)
    assert torch.allclose(run_at(without, call, FeatureSource(plan, None).moment(call)), run(module, call), atol=1e-5)
