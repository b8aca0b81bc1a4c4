"""What is not integer may run in bfloat16, as an artifact says, where tables hold all that follows time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quant
from quant.backends import runtime
from quant.samples import joined
from tests.quant.temporal.test_maintain import TIMES, make_call, opened, recipe, saved


@pytest.mark.parametrize("way", ["cache", "tib", "float"])
def test_bfloat16_is_taken_where_no_timestep_is_embedded(way: str, tmp_path: Path) -> None:
    chosen = recipe(way).model_copy(update={"float_in": "bfloat16"})
    manifest = saved(chosen, tmp_path / "made")
    assert manifest.float_in == quant.read_manifest(tmp_path / "made").float_in == "bfloat16"
    plain = manifest.model_copy(update={"float_in": "float32"})
    calls = joined([make_call([time], seed) for seed, time in enumerate(TIMES)])
    half, full = (
        opened(tmp_path / "made", one, "openvino", tmp_path / f"cache-{one.float_in}").run(calls)
        for one in (manifest, plain)
    )
    error = quant.relative_error(half, full)
    assert error < 0.05
    assert (error > 1e-4) == (way == "cache" and runtime.has_bfloat16())


def test_rows_are_the_same_in_any_company(tmp_path: Path) -> None:
    chosen = recipe("cache").model_copy(update={"float_in": "bfloat16"})
    executable = opened(tmp_path / "made", saved(chosen, tmp_path / "made"), "openvino", tmp_path / "cache")
    calls = joined([make_call([time], seed) for seed, time in enumerate((*TIMES, *TIMES))])
    together = executable.run(calls)
    for rows in ([0], [2, 1], [1, 0, 2]):
        assert torch.equal(executable.run(calls.take(torch.tensor(rows))), together[rows])
