"""Every family of videos draws through a session exactly what plain diffusers draws from the same folder and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

import quant
from jobs.profile import Defaults
from pipelines.batch import group_key, run_together
from pipelines.calibrate import runner
from pipelines.denoiser import COND, UNCOND, DenoiserCall, TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.families import UnsupportedModel, call_arguments
from pipelines.load import Components, load_components, load_denoiser
from pipelines.media import encode_preview
from pipelines.session import DirectSeams, Order, Session, draw
from pipelines.tiny import save_tiny
from pipelines.tiny_videos import VIDEO_FAMILIES, save_tiny_video

ORDER = Order("a red box", "", 64, 32, 3, 3.0, [5, 6], frames=9, fps=8)
CALLS_PER_BRANCH = ("wan", "wan-per-token")
BOTH_IN_ONE = ("ltx", "cogvideox", "cogvideox-rotary")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Components, TorchDenoiser]]:
    root = tmp_path_factory.mktemp("tiny")

    def model(family: str) -> tuple[Components, TorchDenoiser]:
        folder = root / family if (root / family).exists() else save_tiny_video(family, root / family)
        components = load_components(folder)
        return components, TorchDenoiser("float", load_denoiser(components))

    return model


ModelOf = Callable[[str], tuple[Components, TorchDenoiser]]


class Recorder(DirectSeams):
    """Runs directly and keeps calls, steps and the last preview but one."""

    def __init__(self, denoiser: TorchDenoiser) -> None:
        super().__init__(denoiser)
        self.calls: list[DenoiserCall] = []
        self.outputs: list[Tensor] = []
        self.steps: list[tuple[int, int]] = []
        self.previews: list[Tensor] = []

    def denoise(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        self.outputs.append(super().denoise(call))
        return self.outputs[-1]

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        self.steps.append((step, total))
        if step == total - 1:
            self.previews.append(preview())


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_every_family_equals_plain_diffusers(family: str, model_of: ModelOf) -> None:
    components, denoiser = model_of(family)
    seams = Recorder(denoiser)
    videos = Session(components, ORDER, seams).draw()

    plain = diffusers.DiffusionPipeline.from_pretrained(components.folder, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    arguments = call_arguments(
        plain, prompt="a red box", negative_prompt="", width=64, height=32, steps=3, guidance=3.0, n=2, frames=9, fps=8
    )
    expected = plain(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in ORDER.seeds])[0]

    assert videos.shape == (2, 9, 3, 32, 64)
    torch.testing.assert_close(videos, expected, rtol=0, atol=1e-4)
    assert float((videos[0] - videos[1]).abs().max()) > 0.01, "two seeds make two videos"
    assert seams.steps == [(1, 3), (2, 3), (3, 3)]
    assert sorted({int(call.step[0]) for call in seams.calls}) == [0, 1, 2]
    assert seams.previews[0].shape[1:] == (3, 32, 64) and seams.previews[0].shape[0] in (4, 6)
    assert encode_preview(seams.previews[0])[:4] == b"RIFF"


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_every_family_draws_in_half_the_bits(family: str, model_of: ModelOf) -> None:
    exact, denoiser = model_of(family)
    components = load_components(exact.folder, dtype=torch.bfloat16)
    order = replace(ORDER, seeds=[5])
    video = Session(components, order, Recorder(TorchDenoiser("float", load_denoiser(components)))).draw()
    expected = Session(exact, order, Recorder(denoiser)).draw()
    assert video.dtype == torch.float32 and 0 < float((video - expected).abs().mean()) < 0.01


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_calls_of_two_jobs_run_as_one(family: str, model_of: ModelOf) -> None:
    components, denoiser = model_of(family)
    jobs = []
    for seed, steps in ((1, 3), (2, 4)):
        seams = Recorder(denoiser)
        Session(components, replace(ORDER, seeds=[seed], steps=steps), seams).draw()
        jobs.append(seams)
    first, late = (seams.calls[place] for seams, place in zip(jobs, (0, -1), strict=True))
    assert group_key(first) == group_key(late), "whatever step each is at"
    together = run_together(denoiser, [first, late])
    for one, seams, place in zip(together, jobs, (0, -1), strict=True):
        torch.testing.assert_close(one, seams.outputs[place], rtol=0, atol=1e-4)


def test_branches_are_told_apart(model_of: ModelOf) -> None:
    for family in VIDEO_FAMILIES:
        components, denoiser = model_of(family)
        seams = Recorder(denoiser)
        Session(components, replace(ORDER, seeds=[1], steps=1), seams).draw()
        branches = [call.branch.tolist() for call in seams.calls]
        if family in CALLS_PER_BRANCH:
            assert branches == [[COND], [UNCOND]]
        else:
            assert branches == ([[UNCOND, COND]] if family in BOTH_IN_ONE else [[COND]])


def test_every_token_may_have_its_timestep(model_of: ModelOf) -> None:
    seams = Recorder(model_of("wan-per-token")[1])
    Session(model_of("wan-per-token")[0], ORDER, seams).draw()
    assert seams.calls[0].timestep.shape == (2, 3 * 4 * 8)
    assert group_key(seams.calls[0]) != group_key(replace(seams.calls[0], timestep=seams.calls[0].timestep[:, 0]))


def test_what_a_family_looks_at_beside_the_prompt_reaches_it(model_of: ModelOf) -> None:
    components, denoiser = model_of("ltx")
    slow, fast = (draw(components, denoiser, replace(ORDER, seeds=[1], fps=fps)) for fps in (8, 30))
    assert float((slow - fast).abs().max()) > 1e-3, "LTX places frames in seconds"
    components, denoiser = model_of("hunyuan-video")
    less, more = (draw(components, denoiser, replace(ORDER, seeds=[1], guidance=scale)) for scale in (1.0, 9.0))
    assert float((less - more).abs().max()) > 1e-4, "guidance is an input of HunyuanVideo"


def test_counts_that_the_autoencoder_cannot_make_are_refused(model_of: ModelOf) -> None:
    with pytest.raises(UnsupportedModel, match=r"1 \+ a multiple of 4 frames, not 11; ask for 9 or 13"):
        draw(*model_of("wan"), replace(ORDER, frames=11))
    with pytest.raises(UnsupportedModel, match=r"1 \+ a multiple of 8 frames, not 16; ask for 9 or 17"):
        draw(*model_of("ltx"), replace(ORDER, frames=16))


def test_pictures_and_videos_are_not_mixed_up(model_of: ModelOf, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="makes videos, and no number of frames"):
        draw(*model_of("wan"), replace(ORDER, frames=None))
    components = load_components(save_tiny("stable-diffusion", tmp_path / "sd"))
    with pytest.raises(UnsupportedModel, match="makes pictures; a video of 9 frames was asked for"):
        draw(components, TorchDenoiser("float", load_denoiser(components)), ORDER)


def test_a_second_denoiser_is_refused(model_of: ModelOf) -> None:
    folder = model_of("wan")[0].folder
    index = folder / "model_index.json"
    told = json.loads(index.read_text(encoding="utf-8"))
    try:
        index.write_text(json.dumps(told | {"transformer_2": told["transformer"]}), encoding="utf-8")
        with pytest.raises(UnsupportedModel, match=r"one of unet or transformer; it has .*transformer_2"):
            load_components(folder)
    finally:
        index.write_text(json.dumps(told), encoding="utf-8")


def test_defaults_with_frames_draw_and_calibrate_on_videos(model_of: ModelOf) -> None:
    components, denoiser = model_of("wan")
    sizes = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0}
    defaults = Defaults.model_validate(sizes | {"num_frames": 5, "fps": 8})
    drawn = draw_batch(components, denoiser, ["a", "b"], [1, 2], defaults)
    assert drawn.pictures.shape == (2, 5, 3, 32, 32)
    assert [latents.shape for latents in drawn.latents] == [(2, 4, 2, 8, 8)] * 2
    shapes = []

    def answer(call: quant.Call) -> Tensor:
        shapes.append(tuple(call.rows["hidden_states"].shape))
        return call.rows["hidden_states"]

    runner(components, ["a", "b", "c"], defaults, batch=2)(answer)
    assert shapes == [(2, 4, 2, 8, 8)] * 4 + [(1, 4, 2, 8, 8)] * 4, "both branches of both steps, two batches"
