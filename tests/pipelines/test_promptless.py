"""Models without prompts draw what plain diffusers draws, and refuse by name what they cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from jobs.errors import InvalidRequest
from pipelines.denoiser import COND, UNCOND, DenoiserCall, TorchDenoiser
from pipelines.families import Subject, UnsupportedModel, role_of
from pipelines.load import load_components, load_denoiser
from pipelines.session import DirectSeams, NumericalError, Order, Session, draw
from pipelines.subjects import asks_of
from pipelines.tiny import save_tiny
from tests.pipelines.promptless import MODELS, SUBJECTS, save_promptless


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("promptless")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else save_promptless(name, root / name)

    return folder


class Recorder(DirectSeams):
    def __init__(self, denoiser: TorchDenoiser) -> None:
        super().__init__(denoiser)
        self.calls: list[DenoiserCall] = []
        self.previews: list[Tensor] = []

    def denoise(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        return super().denoise(call)

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        if step == 1:
            self.previews.append(preview())


def side_of(name: str) -> int:
    return 32 if name == "ldm" else 16


def order_of(name: str, *, guidance: float = 1.0, **changes: Any) -> Order:
    fields: dict[str, Any] = {"width": side_of(name), "height": side_of(name), "seeds": [5, 6], "steps": 3}
    return Order(**{"prompt": SUBJECTS[name], "negative_prompt": "", "guidance": guidance, **fields, **changes})


def plain(folder: Path, name: str, guidance: float) -> Tensor:
    """The same by diffusers alone."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt", "return_dict": False}
    if "dit" in name:
        arguments |= {"class_labels": list(SUBJECTS[name]), "guidance_scale": guidance}
    else:
        arguments["batch_size"] = 2
    if name == "consistency":
        arguments["class_labels"] = list(SUBJECTS[name])
    made = pipeline(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])[0]
    return torch.from_numpy(made).permute(0, 3, 1, 2) if isinstance(made, np.ndarray) else made


@pytest.mark.parametrize(("name", "guidance"), [*((name, 1.0) for name in MODELS), ("dit-guided", 4.0)])
def test_it_equals_plain_diffusers(name: str, guidance: float, folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(name)
    components = load_components(folder)
    seams = Recorder(TorchDenoiser("float", load_denoiser(components)))
    pictures = Session(components, order_of(name, guidance=guidance), seams).draw()
    assert pictures.shape == (2, 1 if name == "ddim" else 3, side_of(name), side_of(name))
    torch.testing.assert_close(pictures, plain(folder, name, guidance), rtol=0, atol=1e-4)
    assert [call.step[0].item() for call in seams.calls] == [0, 1, 2]
    assert [call.total_steps[0].item() for call in seams.calls] == [3, 3, 3]
    assert seams.previews[0].shape == pictures.shape
    expected = [COND, COND, UNCOND, UNCOND] if guidance > 1 else [COND, COND]
    assert seams.calls[0].branch.tolist() == expected, "DiT puts the conditional half first"


def test_each_picture_of_a_batch_is_the_one_drawn_alone(folder_of: Callable[[str], Path]) -> None:
    for name in ("ddpm", "dit"):
        components = load_components(folder_of(name))
        denoiser = TorchDenoiser("float", load_denoiser(components))
        together = draw(components, denoiser, order_of(name))
        for i, (subject, seed) in enumerate(zip(SUBJECTS[name], (5, 6), strict=True)):
            alone = draw(components, denoiser, order_of(name, prompt=subject, seeds=[seed]))
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("ddpm", {"prompt": "a"}, "does not make pictures from text"),
        ("ddpm", {"prompt": 3}, "does not make pictures of classes"),
        ("ddpm", {"width": 32}, r"16x16 only; 32x16 were asked for"),
        ("ddpm", {"guidance": 3.0}, "takes no guidance_scale; it must be 1, not 3"),
        ("ddpm", {"negative_prompt": "a"}, "no negative prompt"),
        ("dit", {"prompt": None}, "must be told what to show"),
        ("dit", {"prompt": "red"}, "does not make pictures from text"),
        ("dit", {"guidance": 4.0}, "class 1000 for none, and this model has 4 classes; use guidance 1"),
    ],
)
def test_what_it_cannot_do_is_refused(
    name: str, changes: dict[str, Any], text: str, folder_of: Callable[[str], Path]
) -> None:
    components = load_components(folder_of(name))
    denoiser = TorchDenoiser("float", load_denoiser(components))
    with pytest.raises(UnsupportedModel, match=text):
        draw(components, denoiser, order_of(name, **changes))


def test_a_prompt_model_must_have_a_prompt(tmp_path: Path) -> None:
    components = load_components(save_tiny("stable-diffusion", tmp_path / "tiny"))
    denoiser = TorchDenoiser("float", load_denoiser(components))
    for subject, text in ((None, "must be told what to show"), (3, "does not make pictures of classes")):
        with pytest.raises(UnsupportedModel, match=text):
            draw(components, denoiser, Order(subject, "", 32, 32, 2, 3.0, [1]))


def test_infinity_is_an_error_without_an_autoencoder_too(folder_of: Callable[[str], Path]) -> None:
    components = load_components(folder_of("ddim"))
    module = load_denoiser(components)
    module.get_parameter("conv_out.bias").data.fill_(float("inf"))
    with pytest.raises(NumericalError, match="picture"):
        draw(components, TorchDenoiser("float", module), order_of("ddim"))


def test_what_a_folder_asks_for(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    kinds = {name: asks_of(folder_of(name)).kind for name in MODELS}
    assert kinds == {
        "ddpm": "nothing", "ddim": "nothing", "ldm": "nothing",
        "dit": "class", "dit-guided": "class", "consistency": "class",
    }  # fmt: skip
    assert asks_of(save_tiny("flux", tmp_path / "flux")).kind == "prompt"
    with pytest.raises(UnsupportedModel, match="no diffusers folder"):
        asks_of(tmp_path)


def test_classes_are_read_by_number_and_name(folder_of: Callable[[str], Path]) -> None:
    asks = asks_of(folder_of("dit"))
    assert asks.read(["2", "red", "verdant", "0"]) == [2, 0, 1, 0]
    for line in ("4", "-1", "purple", "1.5", "٣"):
        with pytest.raises(
            InvalidRequest, match=r"is no class: this model knows classes 0 to 3, or a name such as red"
        ):
            asks.read([line])
    with pytest.raises(InvalidRequest, match="it has no names"):
        asks_of(folder_of("consistency")).read(["red"])


def test_subjects_that_nobody_chose(folder_of: Callable[[str], Path]) -> None:
    dit: list[Subject] = [0, 0, 1, 1, 2, 2, 3, 3]
    assert asks_of(folder_of("dit")).spread(8) == dit
    assert asks_of(folder_of("dit-guided")).spread(4) == [0, 250, 500, 750]
    assert asks_of(folder_of("ddpm")).spread(2) == [None, None]
    with pytest.raises(InvalidRequest, match="without prompts; leave --prompts out"):
        asks_of(folder_of("ddpm")).read(["a"])


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("timestep", "time"), ("t", "time"), ("guidance", "constant"), ("class_labels", "constant"),
        ("added_cond_kwargs.time_ids", "constant"), ("added_cond_kwargs.resolution", "constant"),
        ("added_cond_kwargs.text_embeds", "pooled"), ("pooled_projections", "pooled"),
        ("encoder_hidden_states", "text"), ("encoder_hidden_states_mask", "text"), ("encoder_attention_mask", "text"),
        ("image_rotary_emb", "sample"), ("img_ids", "sample"), ("something_new", "sample"),
    ],
)  # fmt: skip
def test_arguments_have_roles(name: str, role: str) -> None:
    assert role_of(name) == role
