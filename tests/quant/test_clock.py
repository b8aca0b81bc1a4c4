"""The step clock: rows keep their own time, shapes are checked."""

from __future__ import annotations

import pytest
import torch

from quant.clock import COND, UNCOND, UNKNOWN, StepClock


def test_rows_of_different_times_can_be_taken_in_any_order() -> None:
    clock = StepClock(torch.tensor([3, 0, 7]), torch.tensor([10, 5, 25]), torch.tensor([COND, UNCOND, UNKNOWN]))
    taken = clock.take(torch.tensor([2, 0, 0]))
    assert taken.rows == 3
    assert taken.step.tolist() == [7, 3, 3]
    assert taken.total.tolist() == [25, 10, 10]
    assert taken.branch.tolist() == [UNKNOWN, COND, COND]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"one shape \[B\]"):
        StepClock(torch.zeros(2), torch.zeros(3), torch.zeros(2))


def test_unknown_says_so() -> None:
    assert StepClock.unknown(2).branch.tolist() == [UNKNOWN, UNKNOWN]
