"""Calibration runs: what a denoiser meets in service, the same at every repetition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quant
from jobs.profile import Defaults
from pipelines.calibrate import runner
from pipelines.load import load_components, load_denoiser
from pipelines.tiny import save_tiny

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=3, guidance_scale=4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("stable-diffusion", tmp_path_factory.mktemp("models") / "tiny")


def shapes_seen(denoiser: nn.Module, run: Any) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    handle = denoiser.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
    run(denoiser)
    handle.remove()
    return seen


def test_all_prompts_run_in_batches_with_both_branches(folder: Path) -> None:
    components, told = load_components(folder), []
    run = runner(components, ["a", "b", "c"], DEFAULTS, batch=2, progress=lambda *facts: told.append(facts))
    seen = shapes_seen(load_denoiser(components), run)
    assert seen == [(4, 12, 16, 16)] * 3 + [(2, 12, 16, 16)] * 3
    assert told == [("calibrating", 0, 3), ("calibrating", 2, 3), ("calibrating", 3, 3)]


def test_the_same_seed_gives_the_same_statistics(folder: Path) -> None:
    components = load_components(folder)

    def lows(seed: int) -> list[float]:
        run = runner(components, ["a b", "c"], DEFAULTS, seed=seed)
        return [layer.inputs.low for layer in quant.calibrate(load_denoiser(components), run).layers.values()]

    assert lows(0) == lows(0)
    assert lows(0) != lows(7)


def test_no_prompts_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        runner(load_components(folder), [], DEFAULTS)


def test_it_is_the_plain_pipeline(folder: Path) -> None:
    """The denoiser meets, bit for bit, what diffusers alone would feed it."""
    from diffusers import DiffusionPipeline

    components = load_components(folder)
    plain = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    plain.set_progress_bar_config(disable=True)

    def diffusers_run(denoiser: nn.Module) -> None:
        generator = torch.Generator().manual_seed(5)
        plain.unet = denoiser
        plain(
            "a b",
            width=32,
            height=32,
            num_inference_steps=3,
            guidance_scale=4.0,
            generator=generator,
            output_type="latent",
        )

    ours = quant.calibrate(load_denoiser(components), runner(components, ["a b"], DEFAULTS, seed=5))
    theirs = quant.calibrate(load_denoiser(components), diffusers_run)
    for name, layer in ours.layers.items():
        assert (layer.inputs.low, layer.inputs.high) == (
            theirs.layers[name].inputs.low,
            theirs.layers[name].inputs.high,
        )
