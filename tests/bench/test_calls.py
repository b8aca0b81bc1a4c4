"""Calls on disk: what is read is what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quant
from bench.calls import Answered, load_calls, save_calls


def _answered(step: int) -> Answered:
    clock = quant.StepClock(torch.tensor([step, step]), torch.tensor([9, 9]), torch.tensor([quant.UNCOND, quant.COND]))
    call = quant.Call(
        {
            "sample": torch.randn(2, 3),
            "added.text": torch.randn(2, 4).t().contiguous().t(),
            "timestep": torch.tensor([7, 7]),
        },
        clock,
        shared={"img_ids": torch.arange(4)},
        constants={"return_dict": False, "scale": None, "sizes": [1, 2]},
        roles={"timestep": "time"},
    )
    return Answered(call, torch.randn(2, 3))


def test_round_trip(tmp_path: Path) -> None:
    written = [_answered(step) for step in range(12)]
    save_calls(tmp_path / "calls" / "some.safetensors", written)
    read = load_calls(tmp_path / "calls" / "some.safetensors")
    assert len(read) == len(written)
    for old, new in zip(written, read, strict=True):
        assert new.call.signature() == old.call.signature() and new.call.roles == old.call.roles
        assert torch.equal(new.call.clock.step, old.call.clock.step)
        assert torch.equal(new.call.clock.branch, old.call.clock.branch)
        assert all(torch.equal(new.call.tensors()[name], value) for name, value in old.call.tensors().items())
        assert torch.equal(new.answer, old.answer)


def test_constants_that_json_lacks_are_refused(tmp_path: Path) -> None:
    odd = quant.Call({"x": torch.zeros(1, 1)}, quant.StepClock.unknown(1), constants={"odd": object()})
    with pytest.raises(TypeError):
        save_calls(tmp_path / "odd.safetensors", [Answered(odd, torch.zeros(1))])
    assert not list(tmp_path.iterdir())
