"""The device's turn: in order of arrival, and lent between two pieces of long work."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from workers.loading import let_breathe
from workers.turns import BREATH_SECONDS, Turns


def test_long_work_lends_its_turn_and_gets_it_back() -> None:
    turns, log = Turns(), []
    started = threading.Event()

    def short() -> None:
        started.set()
        with turns.take():
            log.append("short")

    other = threading.Thread(target=short)
    with turns.take() as turn:
        other.start()
        started.wait(10)
        time.sleep(3 * BREATH_SECONDS)
        log.append("first piece")
        turns.breathe()
        log.append("second piece")
        assert turn.lent_seconds > 0
    other.join(10)
    assert log == ["first piece", "short", "second piece"]


def test_a_breath_may_end_the_work_and_is_nothing_outside_a_turn() -> None:
    turns = Turns()
    turns.breathe()

    def enough() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), turns.take(enough):
        turns.breathe()
    with turns.take():
        pass  # it was handed on


def test_a_module_breathes_between_its_layers_and_computes_the_same() -> None:
    turns, breaths = Turns(), []
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    x = torch.randn(2, 4)
    expected = module(x)
    let_breathe(module, turns)
    with turns.take(lambda: breaths.append(1)):
        torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    assert len(breaths) == 5
