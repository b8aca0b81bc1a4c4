"""Pipelines' calls in the library's words: nothing is lost, nothing converted unless asked."""

from __future__ import annotations

import diffusers
import torch
from torch import Tensor

from pipelines.denoiser import DenoiserCall
from pipelines.library_call import library_calls, plain

KIND = diffusers.QwenImageTransformer2DModel


def call(**constants: object) -> DenoiserCall:
    return DenoiserCall(
        sample=torch.arange(2.0).reshape(2, 1, 1).to(torch.bfloat16),
        timestep=torch.tensor([0.5, 0.25], dtype=torch.float64),
        step=torch.tensor([0, 1]),
        total_steps=torch.tensor([2, 2]),
        branch=torch.tensor([0, 1]),
        inputs={"encoder_hidden_states": torch.ones(2, 3, 4), "encoder_hidden_states_mask": torch.ones(2, 3).long()},
        shared={"extra": torch.zeros(7, dtype=torch.float64)},
        constants=constants,
    )


def dtypes(tensors: dict[str, Tensor]) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in tensors.items()}


def test_one_call_keeps_values_dtypes_and_roles() -> None:
    [found] = library_calls(KIND, call(attention_kwargs=None))
    assert dtypes(found.tensors()) == {
        "hidden_states": torch.bfloat16,
        "timestep": torch.float64,
        "encoder_hidden_states": torch.float32,
        "encoder_hidden_states_mask": torch.int64,
        "extra": torch.float64,
    }
    assert (found.clock.step.tolist(), found.clock.branch.tolist()) == ([0, 1], [0, 1])
    assert found.constants == {"attention_kwargs": None, "return_dict": False}
    assert found.roles == {
        "timestep": "time",
        "encoder_hidden_states": "text",
        "encoder_hidden_states_mask": "text",
        "extra": "sample",
    }


def test_lists_with_an_entry_per_row_make_a_call_per_row() -> None:
    parts = library_calls(KIND, call(img_shapes=[[(1, 2, 2)], [(1, 4, 4)]], guidance=None))
    assert [part.constants["img_shapes"] for part in parts] == [[[(1, 2, 2)]], [[(1, 4, 4)]]]
    assert [part.rows["hidden_states"].flatten().tolist() for part in parts] == [[0.0], [1.0]]
    assert [part.clock.step.tolist() for part in parts] == [[0], [1]]
    assert parts[1].role("timestep") == "time"


def test_plain_is_float32() -> None:
    [found] = library_calls(KIND, call())
    assert set(dtypes(plain(found).tensors()).values()) == {torch.float32, torch.int64}
    assert plain(found).roles == found.roles
