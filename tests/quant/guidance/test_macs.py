"""Multiply-adds against counts by hand; the saving of a plan against what its steps leave out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import quant
from quant.backends.call import call_module
from quant.guidance.macs import costs, multiply_adds, saving
from quant.guidance.plan import GuidanceStep
from quant.guidance.share import Patterns, matching
from tests.quant.guidance import by_hand as hand


def counted_by_hand(module: nn.Module, call: quant.Call) -> int:
    """Linears and convolutions by the shapes of weights and outputs; attention by tokens, twice (Q K^T and A V)."""
    total, widths = 0, {}

    def layer(part: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * math.prod(part.weight.shape[1:])
        widths[part] = output.shape

    def attention(part: Any, _: Any, __: Any) -> None:
        nonlocal total
        rows, queries, width = widths[part.to_q]
        total += 2 * rows * queries * widths[part.to_k][1] * width

    handles = [
        part.register_forward_hook(attention if hasattr(part, "to_q") else layer)
        for part in module.modules()
        if hasattr(part, "to_q") or isinstance(part, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        call_module(module, call)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", ["sd15", "pixart-sigma", "dit", "wan"])
def test_the_counter_agrees_with_a_count_by_hand(name: str) -> None:
    module, call = hand.paired(name, 2)
    patches = module.get_submodule("patch_embedding").weight if name == "wan" else torch.zeros(0)
    assert isinstance(patches, torch.Tensor)
    three_dimensions = call.count * (2 * 4 * 4) * patches.numel()  # of tokens in a video of two frames
    counted = multiply_adds(module, call)
    assert counted.total == counted_by_hand(module, call) + three_dimensions
    assert 0 < counted.modules[matching(module, ["*attn1"])[0]] < counted.total


TOKENS, WIDTH = 16, 32
ATTENTION = 4 * TOKENS * WIDTH * WIDTH + 2 * TOKENS * TOKENS * WIDTH
"""Of one row in one self-attention of the tiny PixArt: projections to and fro, and the map."""


def test_sharing_leaves_out_the_unconditional_rows_attention() -> None:
    module, call = hand.paired("pixart-sigma", 2)
    names = matching(module, ["*attn1"])
    outputs = costs(module, call, Patterns(((), names[:1], names)))
    assert outputs.conditional * 2 == outputs.both[0]
    assert outputs.both[0] - outputs.both[1] == ATTENTION
    assert outputs.both[0] - outputs.both[2] == 2 * ATTENTION
    maps = costs(module, call, Patterns(((), names), maps=True))
    assert maps.both[0] - maps.both[1] == 2 * TOKENS * TOKENS * WIDTH  # the product of queries and keys, in two blocks


def test_the_saving_of_a_plan_is_what_its_steps_leave_out() -> None:
    module, call = hand.paired("pixart-sigma", 1)
    taken = costs(module, call, Patterns(((), matching(module, ["*attn1"]))))
    both, shares, reuses = GuidanceStep(), GuidanceStep(pattern=1), GuidanceStep(unconditional="reuse", gain=0.5)
    assert saving([both] * 4, taken) == 0
    assert saving([both, reuses], taken) == pytest.approx(0.25)
    expected = (taken.both[0] / 2 + 2 * ATTENTION) / (3 * taken.both[0])
    assert saving([both, shares, reuses], taken) == pytest.approx(expected)


def test_costs_need_a_pair() -> None:
    module, call = hand.paired("pixart-sigma", 2)
    with pytest.raises(quant.BackendError, match="2 conditional and 0 unconditional rows of 2"):
        costs(module, call.take(torch.tensor([1, 3])))
