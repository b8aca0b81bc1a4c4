"""Shared attention maps equal maps that are written out; what has no map to share says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from quant.guidance.maps import _side_by_side
from quant.guidance.share import matching, shared_call
from tests.quant.guidance import by_hand as hand


def written_out(part: Any, x: Tensor, output: Tensor, cond: Tensor, uncond: Tensor) -> Tensor:
    """Self-attention with the conditional rows' softmax(Q K^T / sqrt d) in both branches' places."""
    layers = (part.to_q, part.to_k, part.to_v)
    q, k, v = (layer(x).unflatten(2, (part.heads, -1)).transpose(1, 2) for layer in layers)
    attention = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1)
    attention[uncond] = attention[cond]
    answer: Tensor = part.to_out[0]((attention @ v).transpose(1, 2).flatten(2))
    assert quant.relative_error(answer[cond], output[cond]) < 1e-5  # so that is what the module computes
    return answer


@pytest.mark.parametrize("name", ["dit", "pixart-sigma", "sd15"])
def test_sharing_maps_equals_maps_written_out(name: str) -> None:
    module, call = hand.paired(name, 2)
    names = matching(module, ["*attn1"])
    answer = shared_call(module, replace(call, pattern=1), ((), names), maps=True)
    assert quant.relative_error(answer, hand.by_hand(module, call, names, written_out)) < 1e-5
    assert quant.relative_error(answer, shared_call(module, call, ((),))) > 1e-4


def test_masks_belong_to_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 2, 5, 8, generator=generator) for _ in range(3))
    mask = torch.randn(4, 1, 5, 5, generator=generator)
    answer = _side_by_side(q, k, v, mask)
    maps = torch.softmax(q @ k.transpose(2, 3) / 8**0.5 + mask, dim=-1)[:2]
    assert torch.allclose(answer, torch.cat([maps @ v[:2], maps @ v[2:]]), atol=1e-5)
    flat = _side_by_side(q, k, v, attn_mask=mask[0, 0], scale=1.0)
    assert torch.allclose(flat[2:], torch.softmax(q @ k.transpose(2, 3) + mask[0, 0], dim=-1)[:2] @ v[2:], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "match", "reason"),
    [
        ("pixart-sigma", "*attn2", r"transformer_blocks\.0\.attn2 attends to text"),
        ("sd3", "*", r"transformer_blocks\.0\.attn attends to text"),
        ("sana", "*attn1", r"transformer_blocks\.0\.attn1 computes no softmax attention"),
    ],
)
def test_what_has_no_map_to_share_says_so(name: str, match: str, reason: str) -> None:
    module, call = hand.paired(name, 1)
    with pytest.raises(quant.BackendError, match=reason):
        shared_call(module, replace(call, pattern=1), ((), matching(module, [match])), maps=True)
    shared_call(module, call, ((),))  # nothing is left of the attempt
