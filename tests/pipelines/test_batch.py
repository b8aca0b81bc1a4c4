"""Calls merge exactly when they fit, and each gets its own rows back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.batch import group_key, merge, repeat, run_together
from pipelines.denoiser import DenoiserCall
from quant.recipe_parts import FloatIn


def call(rows: int, value: float = 1.0, **changes: Any) -> DenoiserCall:
    whole = torch.arange(rows)
    made = DenoiserCall(
        sample=torch.full((rows, 4, 8, 8), value),
        timestep=whole * 10,
        step=whole,
        total_steps=torch.full((rows,), 9),
        branch=whole % 2,
        inputs={"encoder_hidden_states": torch.full((rows, 3, 5), value)},
        shared={"img_ids": torch.zeros(7, 3)},
        constants={"cross_attention_kwargs": None},
    )
    return replace(made, **changes)


class Doubler:
    """Doubles the sample and adds the step, per row."""

    name, backend, weights_bytes, fallbacks, guidance, precision = "double", "torch", 0, 0, None, None
    decode_in: FloatIn = "float32"

    def run(self, call: DenoiserCall) -> Tensor:
        return call.sample * 2 + call.step.reshape(-1, 1, 1, 1)


def test_merging_changes_no_row() -> None:
    calls = [call(2, 1.0), call(1, 5.0), call(3, -2.0)]
    together = run_together(Doubler(), calls)
    alone = [run_together(Doubler(), [one])[0] for one in calls]
    assert [output.shape[0] for output in together] == [2, 1, 3]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        call(2, sample=torch.zeros(2, 4, 8, 16)),
        call(2, sample=torch.zeros(2, 4, 8, 8, dtype=torch.float16)),
        call(2, timestep=torch.zeros(2)),
        call(2, inputs={"encoder_hidden_states": torch.zeros(2, 4, 5)}),
        call(2, inputs={}),
        call(2, shared={"img_ids": torch.ones(7, 3)}),
        call(2, constants={"cross_attention_kwargs": {"scale": 0.5}}),
    ],
    ids=["size", "dtype", "timestep dtype", "text length", "no text", "shared values", "constants"],
)
def test_what_differs_does_not_merge(other: DenoiserCall) -> None:
    assert group_key(call(2)) != group_key(other)


def test_rows_values_and_steps_may_differ() -> None:
    assert group_key(call(2)) == group_key(call(3, 7.0, step=torch.zeros(3, dtype=torch.int64)))


def test_lists_with_an_entry_per_row_are_joined() -> None:
    merged = merge([call(1, constants={"img_shapes": ["a"]}), call(2, constants={"img_shapes": ["b", "c"]})])
    assert merged.constants["img_shapes"] == ["a", "b", "c"]


def test_repeat_makes_any_number_of_rows() -> None:
    repeated = repeat(call(2), 5)
    assert repeated.rows == repeated.inputs["encoder_hidden_states"].shape[0] == 5
    assert repeated.step.tolist() == [0, 1, 0, 1, 0]


def test_arguments_nest_again() -> None:
    nested = call(1, constants={"added.resolution": None}, inputs={"added.text": torch.zeros(1, 2)}).arguments()
    assert set(nested) == {"added", "img_ids"}
    assert set(nested["added"]) == {"resolution", "text"}
