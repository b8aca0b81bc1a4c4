"""Calibration runs: what a denoiser meets in service, call by call, the same at every repetition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quant
from jobs.profile import Defaults
from pipelines.calibrate import Answer, runner
from pipelines.families import Subject
from pipelines.load import Components, load_components, load_denoiser
from pipelines.tiny import save_tiny
from quant.backends.call import call_module
from quant.clock import COND, UNCOND
from tests.pipelines.promptless import SUBJECTS, save_promptless

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=3, guidance_scale=4.0)
SMALL = Defaults(width=16, height=16, num_inference_steps=3, guidance_scale=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("stable-diffusion", tmp_path_factory.mktemp("models") / "tiny")


def calls_of(components: Components, run: Callable[[Answer], None]) -> list[quant.Call]:
    """The calls of a run that the float module answers."""
    module, seen = load_denoiser(components), []

    def answer(call: quant.Call) -> Tensor:
        seen.append(call)
        return call_module(module, call)

    run(answer)
    return seen


def test_all_prompts_run_in_batches_with_both_branches(folder: Path) -> None:
    components, told = load_components(folder), []
    run = runner(components, ["a", "b", "c"], DEFAULTS, batch=2, progress=lambda *facts: told.append(facts))
    seen = calls_of(components, run)
    assert [tuple(call.rows["sample"].shape) for call in seen] == [(4, 12, 16, 16)] * 3 + [(2, 12, 16, 16)] * 3
    assert told == [("calibrating", 0, 3), ("calibrating", 2, 3), ("calibrating", 3, 3)]
    assert [call.clock.step.tolist() for call in seen[:3]] == [[0] * 4, [1] * 4, [2] * 4]
    assert {call.clock.total[0].item() for call in seen} == {3}
    assert seen[0].clock.branch.tolist() == [UNCOND, UNCOND, COND, COND]


def test_calls_say_what_each_tensor_is(tmp_path: Path) -> None:
    components = load_components(save_tiny("stable-diffusion-xl", tmp_path / "xl"))
    call = calls_of(components, runner(components, ["a"], DEFAULTS))[0]
    assert call.roles == {
        "timestep": "time",
        "encoder_hidden_states": "text",
        "added_cond_kwargs.text_embeds": "pooled",
        "added_cond_kwargs.time_ids": "constant",
    }
    assert call.role("sample") == "sample"
    assert call.timestep is not None and call.timestep.shape == (2,)
    shared = load_components(save_tiny("flux", tmp_path / "flux"))
    flux = calls_of(shared, runner(shared, ["a", "b"], DEFAULTS))[0]
    assert (flux.role("guidance"), flux.role("pooled_projections"), flux.role("img_ids")) == (
        "constant", "pooled", "sample",
    )  # fmt: skip
    assert set(flux.shared) == {"img_ids", "txt_ids"}


def test_the_same_seed_gives_the_same_calls(folder: Path) -> None:
    components = load_components(folder)

    def samples(seed: int) -> list[Tensor]:
        run = runner(components, ["a b", "c"], DEFAULTS, seed=seed)
        return [call.rows["sample"] for call in calls_of(components, run)]

    assert all(map(torch.equal, samples(0), samples(0)))
    assert not torch.equal(samples(0)[0], samples(7)[0])


def test_tensors_may_be_kept_and_trained_on(folder: Path) -> None:
    components = load_components(folder)
    call = calls_of(components, runner(components, ["a"], DEFAULTS))[0]
    module = load_denoiser(components).requires_grad_(True)
    [gradient] = torch.autograd.grad(call_module(module, call).sum(), [module.get_parameter("conv_in.weight")])
    assert float(gradient.abs().max()) > 0


def test_no_subjects_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        runner(load_components(folder), [], DEFAULTS)


@pytest.mark.parametrize("name", ["ddpm", "ldm", "dit"])
def test_models_without_prompts_run_too(name: str, tmp_path: Path) -> None:
    components = load_components(save_promptless(name, tmp_path / name))
    defaults = SMALL.model_copy(update={"width": 32, "height": 32}) if name == "ldm" else SMALL
    subjects: list[Subject] = list(SUBJECTS[name])
    seen, again = (calls_of(components, runner(components, subjects, defaults)) for _ in range(2))
    assert [call.count for call in seen] == [2, 2, 2]
    assert all(torch.equal(a.tensors()["timestep"], b.tensors()["timestep"]) for a, b in zip(seen, again, strict=True))
    sample = "hidden_states" if name == "dit" else "sample"
    assert all(torch.equal(a.rows[sample], b.rows[sample]) for a, b in zip(seen, again, strict=True))
    if name == "dit":
        assert seen[0].rows["class_labels"].tolist() == [1, 3]
        assert seen[0].role("class_labels") == "constant"


def test_it_is_the_plain_pipeline(folder: Path) -> None:
    """The denoiser meets, bit for bit and dtype for dtype, what diffusers alone would feed it."""
    from diffusers import DiffusionPipeline

    components = load_components(folder)
    plain = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    plain.unet, theirs = load_denoiser(components), []

    def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        theirs.append((given[0], given[1], named["encoder_hidden_states"]))

    plain.unet.register_forward_pre_hook(hook, with_kwargs=True)
    named: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 4.0}
    plain("a b", **named, generator=torch.Generator().manual_seed(5), output_type="latent")
    ours = calls_of(components, runner(components, ["a b"], DEFAULTS, seed=5))
    assert len(ours) == len(theirs) == 3
    for call, (sample, timestep, text) in zip(ours, theirs, strict=True):
        assert torch.equal(call.rows["sample"], sample)
        assert torch.equal(call.rows["encoder_hidden_states"], text)
        assert call.rows["timestep"].tolist() == [timestep.item()] * 2
        assert call.rows["timestep"].dtype == timestep.dtype
