"""Influence: what an error at a step does to finished latents, held against the scheduler's own arithmetic."""

from __future__ import annotations

import copy

import pytest
import torch

from jobs.profile import Defaults
from pipelines.influence import influences
from pipelines.load import Components, load_components, load_denoiser
from pipelines.tiny import save_tiny

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=4, guidance_scale=3.0)


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load_components(save_tiny("stable-diffusion", tmp_path_factory.mktemp("model") / "sd"))


def test_the_last_step_moves_latents_as_the_scheduler_says(components: Components) -> None:
    denoiser = load_denoiser(components)
    wrong = copy.deepcopy(denoiser)
    wrong.conv_out.bias.data += 0.01  # type: ignore[operator, union-attr]
    counted: list[tuple[int, int]] = []
    found = influences(
        components, denoiser, wrong, ["a b", "c"], DEFAULTS, told=lambda done, total: counted.append((done, total))
    )
    assert found.guided and len(found.by_step) == 4 and found.shape == (12, 16, 16)
    assert counted[-1] == (4, 4)
    scheduler = copy.deepcopy(components.parts["scheduler"])
    scheduler.set_timesteps(4)
    last, sample = scheduler.timesteps[-1], torch.zeros(1, 12, 16, 16)
    moved = [scheduler.step(torch.full_like(sample, value), last, sample)[0] for value in (0.0, 0.01)]
    assert found.by_step[-1] == pytest.approx(float((moved[1] - moved[0]).mean() / 0.01), rel=0.02)
    assert found.size > 0


def test_one_branch_has_no_guidance(components: Components) -> None:
    denoiser = load_denoiser(components)
    wrong = copy.deepcopy(denoiser)
    wrong.conv_out.bias.data += 0.01  # type: ignore[operator, union-attr]
    plain = influences(components, denoiser, wrong, ["a"], DEFAULTS.model_copy(update={"guidance_scale": 1.0}))
    assert not plain.guided
    nothing = influences(components, denoiser, denoiser, ["a"], DEFAULTS)
    assert set(nothing.by_step) == {0.0}
