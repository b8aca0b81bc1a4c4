"""The reservoir: as many rows as wished, balanced over time and branch, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quant
from quant.samples import Reservoir, Samples, SampleWish, normal_share

STEPS = 10


def offer(reservoir: Reservoir, prompts: int, *, batch: int = 4, width: int = 3) -> None:
    for start in range(0, prompts, batch):
        for step in range(STEPS):
            numbers = torch.arange(start, min(start + batch, prompts)).repeat(2)
            branch = torch.arange(2).repeat_interleave(len(numbers) // 2)
            clock = quant.StepClock(torch.full_like(numbers, step), torch.full_like(numbers, STEPS), branch)
            value = (numbers * 1000 + step * 10 + branch).float()[:, None].expand(-1, width)
            call = quant.Call({"sample": value, "time": 1.0 - clock.step / STEPS}, clock, roles={"time": "time"})
            reservoir.add(call, clock.step)


def kept(wish: SampleWish, prompts: int, seed: int = 0) -> Samples:
    reservoir = Reservoir(wish, seed)
    offer(reservoir, prompts)
    return reservoir.samples()


def rows_by_step(samples: Samples) -> Counter[int]:
    return Counter(step for call in samples.calls for step in call.clock.step.tolist())


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 200), prompts=st.integers(1, 12), normal=st.booleans())
def test_as_many_rows_as_there_are_or_were_wished(count: int, prompts: int, normal: bool) -> None:
    samples = kept(SampleWish(count, "normal" if normal else "uniform"), prompts)
    assert samples.count == min(count, prompts * STEPS * 2)
    (call,) = samples.calls
    values = call.rows["sample"][:, 0].int().tolist()
    assert len(set(values)) == len(values)
    assert [value % 1000 // 10 for value in values] == call.clock.step.tolist()
    assert [value % 10 for value in values] == call.clock.branch.tolist()


@pytest.mark.parametrize(("room", "count"), [(240, 15), (239, 14), (1, 1), (10_000, 40)])
def test_rows_are_bounded_in_bytes(room: int, count: int) -> None:
    samples = kept(SampleWish(40, bytes=room), 20)  # a row is three float32 and a float32 time
    assert (samples.count, samples.missed) == (count, 40 - count)


def test_uniform_takes_as_many_of_each_step_and_branch() -> None:
    (call,) = kept(SampleWish(65), 20).calls
    cells = Counter(zip(call.clock.step.tolist(), call.clock.branch.tolist(), strict=True))
    assert len(cells) == 20
    assert set(cells.values()) == {3, 4}
    assert len(set((call.rows["sample"][:, 0] // 1000).tolist())) > 10  # of many prompts, not of the first ones


def test_normal_shares_are_those_of_the_clamped_draw() -> None:
    drawn = (torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.4) * STEPS
    timesteps = drawn.to(torch.int).clamp(0, STEPS - 1)
    for step in range(STEPS):
        share = float((timesteps == STEPS - 1 - step).float().mean())
        assert normal_share(step, STEPS) == pytest.approx(share, abs=0.004)
    assert sum(normal_share(step, STEPS) for step in range(STEPS)) == pytest.approx(1.0)
    assert normal_share(0, 1) == 1.0


def test_normal_leans_to_the_clean_end() -> None:
    steps = rows_by_step(kept(SampleWish(200, "normal"), 100))
    for step in range(STEPS):
        assert abs(steps[step] - 200 * normal_share(step, STEPS)) <= 2
    assert sum(steps[step] for step in range(5, 10)) > sum(steps[step] for step in range(5))


def test_a_short_step_leaves_its_share_to_others() -> None:
    steps = rows_by_step(kept(SampleWish(80, "normal"), 5))
    assert steps[STEPS - 1] == 10  # all there are, though its share would be 22
    assert sum(steps.values()) == 80


def test_the_seed_decides() -> None:
    first, again, other = (kept(SampleWish(30), 20, seed).calls[0].rows["sample"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_calls_of_other_shapes_are_kept_apart() -> None:
    reservoir = Reservoir(SampleWish(1000), 0)
    offer(reservoir, 2, width=3)
    offer(reservoir, 2, width=5)
    assert [call.rows["sample"].shape for call in reservoir.samples().calls] == [(40, 3), (40, 5)]


def test_rows_do_not_change_with_the_call_they_came_in() -> None:
    reservoir = Reservoir(SampleWish(4), 0)
    sample = torch.zeros(2, 3)
    call = quant.Call({"sample": sample}, quant.StepClock.unknown(2))
    reservoir.add(call, call.clock.step)
    sample.fill_(7.0)
    assert float(reservoir.samples().calls[0].rows["sample"].abs().max()) == 0.0


def test_nothing_cannot_be_wished_for() -> None:
    with pytest.raises(ValueError, match="at least one row, not 0"):
        Reservoir(SampleWish(0), 0)
