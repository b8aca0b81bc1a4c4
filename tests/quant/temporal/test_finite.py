"""The finite set as one call: order of its rows, and no copies of latents."""

from __future__ import annotations

import pytest
import torch

from quant.clock import UNKNOWN
from quant.temporal.finite import FiniteSet, take_timed
from tests.quant.temporal.tib import make_call


def test_calls_for_each_slot_become_one() -> None:
    pooled = torch.arange(15.0).view(3, 5)
    calls = [make_call(torch.full((3,), t), pooled) for t in (900.0, 500.0)]
    finite = FiniteSet.of(calls)
    assert finite.slots == 2 and finite.call.count == 6
    assert finite.call.rows["timestep"].tolist() == [900.0] * 3 + [500.0] * 3
    assert torch.equal(finite.call.rows["pooled"], torch.cat([pooled, pooled]))
    assert finite.moment.slot.tolist() == [0, 0, 0, 1, 1, 1]
    assert bool(finite.moment.known.all()) and set(finite.moment.branch.tolist()) == {UNKNOWN}
    features = {"g": torch.arange(12).view(6, 2)}
    assert finite.by_slot(features)["g"].tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]


def test_one_call_has_a_row_for_each_slot() -> None:
    finite = FiniteSet.of([make_call(torch.tensor([900.0, 500.0, 20.0]))])
    assert finite.slots == 3 and finite.moment.slot.tolist() == [0, 1, 2]


def test_latents_have_no_memory_of_their_own() -> None:
    call = make_call(torch.arange(10.0))
    taken = take_timed(call, torch.tensor([7, 3]))
    assert taken.rows["timestep"].tolist() == [7.0, 3.0]
    assert taken.rows["sample"].shape == (2, 4)
    assert taken.rows["sample"].data_ptr() == call.rows["sample"].data_ptr()


def test_calls_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equally many rows, got \[1, 2\]"):
        FiniteSet.of([make_call(torch.zeros(1)), make_call(torch.zeros(2))])
