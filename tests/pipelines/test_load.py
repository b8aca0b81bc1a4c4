"""Folders that must not be loaded are refused with their reason; what is loaded is shared but for the scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.families import UnsupportedModel
from pipelines.load import load_components, load_denoiser, new_pipeline
from pipelines.tiny import save_tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("stable-diffusion", tmp_path / "tiny")


def edit_index(folder: Path, **changes: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


def test_pipelines_share_parts_but_no_scheduler(folder: Path) -> None:
    components = load_components(folder)
    one, other = (new_pipeline(components, components.skeleton) for _ in range(2))
    assert one.vae is other.vae is components.parts["vae"]
    assert one.scheduler is not other.scheduler
    assert one.scheduler.config == other.scheduler.config
    assert components.weights_bytes > 0
    assert {parameter.device.type for parameter in components.skeleton.parameters()} == {"meta"}


def test_weights_stored_in_half_precision_are_used_in_full(folder: Path) -> None:
    components = load_components(folder)
    half: Any = load_denoiser(components).to(torch.float16)
    half.save_pretrained(folder / "unet")
    assert {parameter.dtype for parameter in load_denoiser(components).parameters()} == {torch.float32}


def test_pickled_weights_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsupportedModel, match=r"diffusion_pytorch_model\.bin, which can run code"):
        load_denoiser(load_components(folder))


def test_code_from_the_folder_is_never_run(folder: Path) -> None:
    edit_index(folder, vae=["my_code", "MyAutoencoder"])
    with pytest.raises(UnsupportedModel, match=r"my_code\.MyAutoencoder; custom code is never run"):
        load_components(folder)


def test_an_unknown_pipeline_is_refused(folder: Path) -> None:
    edit_index(folder, _class_name="MyPipeline")
    with pytest.raises(UnsupportedModel, match="MyPipeline"):
        load_components(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.weight"]
    save_file(weights, file)
    with pytest.raises(UnsupportedModel, match=r"lacks weights.*conv_in\.weight"):
        load_denoiser(load_components(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"layers_per_block": 2}))
    with pytest.raises(UnsupportedModel, match="expected shape"):
        load_denoiser(load_components(folder))


def test_no_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no diffusers folder"):
        load_components(tmp_path)
