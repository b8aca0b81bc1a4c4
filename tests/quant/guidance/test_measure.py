"""Errors of sharing: as computed the long way, none where both branches see the same, guided channels only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import quant
from quant.guidance.measure import sharing_errors
from quant.guidance.share import attention_modules
from tests.quant.guidance import by_hand as hand


def guided_by_hand(call: quant.Call, output: Tensor, scale: float) -> Tensor:
    cond, uncond = call.pairs().T
    return (1 - scale) * output[uncond] + scale * output[cond]


def test_errors_are_those_of_the_long_way() -> None:
    module, call = hand.paired("wan", 2)
    names, told = list(attention_modules(module)), []
    errors = sharing_errors(module, [call] * 2, names, 3.0, progress=lambda done, of: told.append((done, of)))
    assert errors.shape == (2, 4)
    assert told == [(done, 10) for done in range(1, 11)]
    exact = guided_by_hand(call, hand.by_hand(module, call, []), 3.0)
    for place, name in enumerate(names):
        shared = guided_by_hand(call, hand.by_hand(module, call, [name]), 3.0)
        expected = quant.relative_errors(shared, exact).mean()
        assert float(errors[1, place]) == pytest.approx(float(expected), rel=1e-4)


def same_latents(call: quant.Call) -> quant.Call:
    """The call as pipelines make it: both branches of a picture at one time, with the same latents."""
    first = torch.arange(call.count) // 2 * 2
    shared = {name: tensor[first] for name, tensor in call.rows.items() if call.role(name) in ("sample", "time")}
    return replace(call, rows={**call.rows, **shared})


def test_what_sees_no_text_yet_shares_without_error() -> None:
    module, call = hand.paired("pixart-sigma", 2)
    errors = sharing_errors(
        module, [same_latents(call)], ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"], 4.0
    )
    assert float(errors[0, 0]) < 1e-6
    assert float(errors[0, 1]) > 1e-4


def test_a_learned_variance_does_not_count() -> None:
    module, call = hand.paired("dit", 2)  # 4 channels in, 8 out: the last 4 are no noise, and not guided
    name = "transformer_blocks.0.attn1"
    error = float(sharing_errors(module, [call], [name], 3.0)[0, 0])
    exact, shared = (guided_by_hand(call, hand.by_hand(module, call, names), 3.0)[:, :4] for names in ([], [name]))
    assert error == pytest.approx(float(quant.relative_errors(shared, exact).mean()), rel=1e-4)


def test_maps_are_measured_too() -> None:
    module, call = hand.paired("dit", 1)
    name = "transformer_blocks.0.attn1"
    outputs, maps = (float(sharing_errors(module, [call], [name], 3.0, maps=maps)[0, 0]) for maps in (False, True))
    assert 0 < maps != outputs
