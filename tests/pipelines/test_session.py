"""Every family draws through a session exactly what plain diffusers draws from the same folder and seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from pipelines.denoiser import COND, UNCOND, DenoiserCall, TorchDenoiser
from pipelines.families import UnsupportedModel, call_arguments
from pipelines.load import load_components, load_denoiser
from pipelines.session import DirectSeams, NumericalError, Order, Session, draw
from pipelines.tiny import FAMILIES, save_tiny

ORDER = Order("a red box", "", 48, 32, 4, 3.0, [5, 6])


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tiny")

    def folder(family: str) -> Path:
        return root / family if (root / family).exists() else save_tiny(family, root / family)

    return folder


class Recorder(DirectSeams):
    """Runs directly and keeps the calls and steps."""

    def __init__(self, denoiser: TorchDenoiser) -> None:
        super().__init__(denoiser)
        self.calls: list[DenoiserCall] = []
        self.steps: list[tuple[int, int]] = []
        self.previews: list[Tensor] = []

    def denoise(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        return super().denoise(call)

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        self.steps.append((step, total))
        if step == total - 1:
            self.previews.append(preview())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_plain_diffusers(family: str, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(family)
    components = load_components(folder)
    seams = Recorder(TorchDenoiser("float", load_denoiser(components)))
    pictures = Session(components, ORDER, seams).draw()

    plain = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    arguments = call_arguments(
        plain, prompt=ORDER.prompt, negative_prompt="", width=48, height=32, steps=4, guidance=3.0, n=2
    )
    expected = plain(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in ORDER.seeds])[0]

    assert pictures.shape == (2, 3, 32, 48)
    torch.testing.assert_close(pictures, expected, rtol=0, atol=1e-4)
    assert seams.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [call.step[0].item() for call in seams.calls] == [0, 1, 2, 3]
    assert all(call.timestep.shape == call.step.shape == (call.rows,) for call in seams.calls)
    assert seams.previews[0].shape == pictures.shape
    assert bool(torch.isfinite(seams.previews[0]).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_in_half_the_bits(family: str, dtype: torch.dtype, folder_of: Callable[[str], Path]) -> None:
    pictures = {}
    for kind in (torch.float32, dtype):
        components = load_components(folder_of(family), dtype=kind)
        denoiser = load_denoiser(components)
        assert {tensor.dtype for tensor in denoiser.parameters()} == {kind}
        pictures[kind] = Session(components, ORDER, DirectSeams(TorchDenoiser("float", denoiser))).draw()
    assert pictures[dtype].dtype == torch.float32, "files are made as ever"
    assert 0 < float((pictures[dtype] - pictures[torch.float32]).abs().mean()) < 0.01


def test_guided_rows_know_their_branch(folder_of: Callable[[str], Path]) -> None:
    components = load_components(folder_of("stable-diffusion"))
    seams = Recorder(TorchDenoiser("float", load_denoiser(components)))
    Session(components, ORDER, seams).draw()
    assert seams.calls[0].branch.tolist() == [UNCOND, UNCOND, COND, COND]
    assert set(seams.calls[0].inputs) == {"encoder_hidden_states"}


def test_branches_are_heard_where_the_pipeline_says_them(folder_of: Callable[[str], Path]) -> None:
    components = load_components(folder_of("flux"))
    seams = Recorder(TorchDenoiser("float", load_denoiser(components)))
    Session(components, ORDER, seams).draw()
    assert seams.calls[0].branch.tolist() == [COND, COND]
    assert set(seams.calls[0].shared) == {"img_ids", "txt_ids"}


def test_nan_is_an_error_and_no_black_picture(folder_of: Callable[[str], Path]) -> None:
    components = load_components(folder_of("stable-diffusion"))
    module = load_denoiser(components)
    next(module.parameters()).data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="NaN"):
        draw(components, TorchDenoiser("float", module), ORDER)


def test_a_negative_prompt_that_would_be_ignored_is_refused(folder_of: Callable[[str], Path]) -> None:
    components = load_components(folder_of("flux"))
    order = Order("a box", "red", 32, 32, 2, 3.0, [1])
    with pytest.raises(UnsupportedModel, match="negative prompt"):
        draw(components, TorchDenoiser("float", load_denoiser(components)), order)
