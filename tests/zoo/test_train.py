"""The training recipe: every stage checkpoints and resumes, and what comes out is a plain diffusers folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from jobs.model_folder import read_model
from zoo.shapes.captions import VOCABULARY
from zoo.train import assemble, autoencoder, checkpoint, denoiser, latents, text, tokenizer


def test_checkpoints_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "state.pt"
    assert checkpoint.load(path) is None
    checkpoint.save(path, {"step": 3, "weights": torch.ones(2)})
    state = checkpoint.load(path)
    assert state is not None and state["step"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [checkpoint.learning_rate(step, 1000, 1.0, warm=100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100:750] == [1.0] * 650
    assert rates[875] == pytest.approx(0.5)
    assert rates[1000] == 0


def test_every_known_word_is_one_token_and_ids_never_change() -> None:
    words = tokenizer.build()
    assert all(len(words(word)["input_ids"]) == 3 for word in VOCABULARY)
    again = tokenizer.build()("a large red circle left of a dragon")["input_ids"]
    assert words("a large red circle left of a dragon")["input_ids"] == again
    shipped = DiffusionPipeline.from_pretrained(Path("zoo/models/shapes-unet")).tokenizer
    assert shipped("a large red circle left of a dragon")["input_ids"] == again


def test_stages_resume_and_make_a_plain_diffusers_folder(tmp_path: Path) -> None:
    for steps in (2, 3):
        vae = autoencoder.train(tmp_path / "vae.pt", autoencoder.Plan(steps=steps, batch=2))
        encoder = text.train(tmp_path / "text.pt", text.Plan(steps=steps, batch=4))
    states = [checkpoint.load(tmp_path / name) for name in ("vae.pt", "text.pt")]
    assert [state["step"] for state in states if state] == [3, 3]
    data = latents.make(tmp_path / "latents.pt", vae.eval(), count=20, chunk=10)
    assert data.latents.shape == (20, autoencoder.LATENT_CHANNELS, 8, 8)
    assert data.latents.float().std() == pytest.approx(1, rel=0.05)
    assert torch.equal(latents.make(tmp_path / "latents.pt", vae, count=20).ids, data.ids)
    for steps in (2, 3):
        stage = denoiser.train(tmp_path / "unet.pt", data, encoder.eval(), denoiser.Plan(steps=steps, batch=4))
    assert stage.step == 3
    pipe = assemble.pipeline(vae, encoder, stage.average, data.scale)
    assemble.write(pipe, tmp_path / "shapes-unet")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "shapes-unet")
    loaded.set_progress_bar_config(disable=True)
    made = loaded("a red circle", num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 64, 64, 3)
    card = read_model(tmp_path / "shapes-unet")
    assert (card.defaults.width, card.vocabulary) == (64, VOCABULARY)
