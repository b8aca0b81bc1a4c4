"""Models of public sizes: the small ones as folders that the product serves, the large ones by their counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quant
from bench.public import MODELS, random_denoiser, write_model
from bench.subjects import Picture
from jobs.model_folder import read_model
from pipelines.examples import example_call
from pipelines.load import load_components, load_denoiser
from pipelines.sizes import PUBLIC


def test_a_folder_is_one_that_the_product_serves(root: Path) -> None:
    folder = Picture("small-unet@8", root).folder
    card = read_model(folder)
    assert (card.id, card.pipeline, card.defaults.num_inference_steps) == ("small-unet", "StableDiffusionPipeline", 25)
    assert type(load_denoiser(load_components(folder))).__name__ == "UNet2DConditionModel"


def test_it_is_written_once(root: Path) -> None:
    folder = Picture("small-unet@8", root).folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_model("small-unet", folder) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("name", ["small-unet", "small-pixart"])
def test_outputs_are_of_deviation_one_and_depend_on_text(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = random_denoiser(MODELS[name])
    call = example_call(module, rows=2, seed=5)
    text = "encoder_hidden_states"
    with torch.no_grad():
        answer = quant.call_module(module, call)
        other = quant.call_module(
            module, quant.Call({**call.rows, text: -call.rows[text]}, call.clock, roles=call.roles)
        )
    assert 0.7 < float(answer.std()) < 1.4
    assert quant.relative_error(other, answer) > 1e-3


@pytest.mark.parametrize(("name", "millions"), [("sd15", 859.5), ("pixart", 610.9)])
def test_full_models_have_the_size_of_public_ones(name: str, millions: float) -> None:
    assert not MODELS[name].shrink
    module = PUBLIC[MODELS[name].denoiser].build()
    assert sum(one.numel() for one in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no model 'sd99'; there are sd15, pixart"):
        write_model("sd99", tmp_path / "sd99")
