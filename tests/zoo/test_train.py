"""The training recipe: every stage checkpoints and resumes, and what comes out is a plain diffusers folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from jobs.model_folder import read_model
from pipelines.denoiser import TorchDenoiser
from pipelines.load import load_components, load_denoiser
from pipelines.session import Order, draw
from zoo.shapes.captions import VOCABULARY
from zoo.shapes.world import COLOURS, random_scene
from zoo.train import assemble, autoencoder, checkpoint, denoiser, latents, moving, still, text
from zoo.train.__main__ import KINDS
from zoo.train.clip import Clip
from zoo.train.dit import ShapesDiT
from zoo.train.t5 import T5, UMT5
from zoo.train.unet import ShapesUNet
from zoo.train.video import ShapesVideo


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


@pytest.mark.parametrize(("language", "ends", "model"), [(Clip, 2, "shapes-unet"), (T5, 1, "shapes-dit")])
def test_every_known_word_is_one_token_and_ids_never_change(language: type[Clip | T5], ends: int, model: str) -> None:
    words, prompt = language().words, "A large red circle left of a dragon"
    assert all(len(words(word)["input_ids"]) == 1 + ends for word in (*VOCABULARY, *map(str.capitalize, VOCABULARY)))
    again = language().words(prompt)["input_ids"]
    assert words(prompt)["input_ids"] == again
    shipped = DiffusionPipeline.from_pretrained(Path("zoo/models") / model).tokenizer
    assert shipped(prompt)["input_ids"] == again


def test_padding_changes_no_state_of_t5() -> None:
    language = T5()
    torch.manual_seed(0)
    encoder = language.build().eval()
    ids = language.tokens(["a red circle", "a large red circle left of a tiny blue square on a black background"])
    with torch.no_grad():
        both, alone = language.states(encoder, ids), language.states(encoder, ids[:1])
        plain = encoder(ids, attention_mask=language.knowing(ids).long()).last_hidden_state
    known = language.knowing(ids)
    torch.testing.assert_close(both[known], plain[known], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[:1][known[:1]], alone[known[:1]], rtol=1e-5, atol=1e-5)


def test_the_meaning_tells_the_colour_that_is_named_first() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        saying = text.say(random_scene(rng, 2, unseen=False), rng)
        first = list(COLOURS)[text.meaning(saying)[-1]]
        others = [thing.colour for thing in saying.scene.things if thing.colour != first]
        assert all(saying.text.lower().index(first) < saying.text.lower().index(other) for other in others)


@pytest.mark.parametrize("name", KINDS)
def test_stages_resume_and_make_a_plain_diffusers_folder(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]()
    for steps in (2, 3):
        vae = autoencoder.train(tmp_path / "vae.pt", autoencoder.Plan(steps=steps, batch=2))
        encoder = text.train(tmp_path / "text.pt", kind.language, text.Plan(steps=steps, batch=4))
    states = [checkpoint.load(tmp_path / name) for name in ("vae.pt", "text.pt")]
    assert [state["step"] for state in states if state] == [3, 3]
    data = latents.make(tmp_path / "latents.pt", vae.eval(), kind.language, count=20, chunk=10)
    assert data.latents.shape == (20, autoencoder.LATENT_CHANNELS, 8, 8)
    assert data.latents.float().std() == pytest.approx(1, rel=0.05)
    assert torch.equal(latents.make(tmp_path / "latents.pt", vae, kind.language, count=20).ids, data.ids)
    for steps in (2, 3):
        stage = denoiser.train(
            tmp_path / kind.checkpoint, kind, data, encoder.eval(), denoiser.Plan(steps=steps, batch=4)
        )
    assert stage.step == 3
    pipe = assemble.pipeline(kind, vae, encoder, stage.average, data.scale)
    assemble.write(kind, pipe, tmp_path / name)
    order = Order("a red circle", "", width=64, height=64, steps=2, guidance=3.0, seeds=(1,))
    components = load_components(tmp_path / name)
    assert draw(components, TorchDenoiser("float", load_denoiser(components)), order).shape == (1, 3, 64, 64)
    card = read_model(tmp_path / name)
    assert (card.id, card.defaults.width, card.vocabulary) == (name, 64, VOCABULARY)
