"""The training recipe: every stage checkpoints and resumes, and what comes out is a plain diffusers folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from jobs.model_folder import read_model
from pipelines.denoiser import TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.load import load_components, load_denoiser
from zoo.build import ZOO
from zoo.shapes.motion import Motion, MovingScene
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, random_scene
from zoo.train import assemble, autoencoder, checkpoint, denoiser, latents, moving, schedule, still, text, video
from zoo.train.__main__ import KINDS
from zoo.train.films import Films
from zoo.train.t5 import T5, UMT5


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


@pytest.mark.parametrize(("name", "ends"), [("shapes-unet", 2), ("shapes-dit", 1), ("shapes-video", 1)])
def test_every_known_word_is_one_token_and_ids_never_change(name: str, ends: int) -> None:
    kind, prompt = KINDS[name](), "A large red circle left of a dragon"
    known = kind.card["vocabulary"]
    words = kind.language.words
    assert all(len(words(word)["input_ids"]) == 1 + ends for word in (*known, *map(str.capitalize, known)))
    again = KINDS[name]().language.words(prompt)["input_ids"]
    assert words(prompt)["input_ids"] == again


@pytest.mark.parametrize("name", sorted(path.name for path in (ZOO / "models").iterdir()))
def test_shipped_tokenizers_are_the_recipes(name: str) -> None:
    prompt = "A large red circle left of a dragon, Moving"
    again = KINDS[name]().language.words(prompt)["input_ids"]
    shipped = AutoTokenizer.from_pretrained(ZOO / "models" / name / "tokenizer")
    assert shipped(prompt)["input_ids"] == again


@pytest.mark.parametrize("kind", [T5, UMT5])
def test_padding_changes_no_state_of_t5(kind: type[T5]) -> None:
    language = kind(still.WORDS)
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
        saying = still.say(random_scene(rng, 2, unseen=False), rng)
        first = list(COLOURS)[still.meaning(saying)[-1]]
        others = [thing.colour for thing in saying.scene.things if thing.colour != first]
        assert all(saying.text.lower().index(first) < saying.text.lower().index(other) for other in others)


def test_a_moving_scene_means_its_colour_shape_motion_and_background() -> None:
    scene = MovingScene("beige", "green", "cross", Motion.SPIN)
    colour, shape, motion, ground = moving.meaning(scene, background=True)
    named = (list(COLOURS)[colour], SHAPES[shape], list(Motion)[motion], list(BACKGROUNDS)[ground - 1])
    assert named == ("green", "cross", Motion.SPIN, "beige")
    assert moving.meaning(scene, background=False)[-1] == 0
    assert all(
        0 <= value < size for value, size in zip((colour, shape, motion, ground), moving.Moving.classes, strict=True)
    )


def test_films_are_learned_as_frames_then_as_parts_then_whole() -> None:
    rng = np.random.default_rng(0)
    shapes = [Films().batch(rng, 4, share).shape for share in (0.0, 0.999)]
    assert shapes == [(16, 3, 1, 32, 32), (1, 3, 17, 64, 64)]


def test_a_flow_leads_straight_from_data_to_noise_and_the_scheduler_walks_it_back() -> None:
    torch.manual_seed(0)
    latents = torch.randn(64, 2, 3, 4, 4)
    noisy, times, target, weight = schedule.Flow().draw(latents)
    share = (times / 1000).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(noisy - share * target, latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noisy + (1 - share) * target, target + latents, rtol=1e-4, atol=1e-4)
    assert (weight == 1).all() and 0 <= times.min() < times.max() <= 1000
    walker = schedule.flow_scheduler()
    walker.set_timesteps(8)
    start = torch.randn(latents.shape)
    sample = start
    for time in walker.timesteps:
        sample = walker.step(start - latents, time, sample).prev_sample
    torch.testing.assert_close(sample, latents, rtol=1e-3, atol=1e-3)


def test_padding_of_captions_is_zeros_of_several_lengths() -> None:
    torch.manual_seed(0)
    states, known = torch.randn(2, text.LENGTH, 4), torch.arange(text.LENGTH)[None] < torch.tensor([[3], [7]])
    seen = [video.padded(states, known) for _ in range(60)]
    assert {made.shape[1] for made in seen} == {7, text.LENGTH, video.DIFFUSERS_LENGTH}
    for made in seen:
        assert torch.equal(made[0, :3], states[0, :3]) and torch.equal(made[1, :7], states[1, :7])
        assert not made[0, 3:].any() and not made[1, 7:].any()


@pytest.mark.parametrize("name", KINDS)
def test_stages_resume_and_make_a_plain_diffusers_folder(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]()
    coder = kind.world.autoencoder
    for steps in (2, 3):
        vae = autoencoder.train(tmp_path / "vae.pt", coder, autoencoder.Plan(steps=steps, batch=2))
        encoder = text.train(tmp_path / "text.pt", kind.language, kind.world, text.Plan(steps=steps, batch=4))
    states = [checkpoint.load(tmp_path / name) for name in ("vae.pt", "text.pt")]
    assert [state["step"] for state in states if state] == [3, 3]
    data = latents.make(tmp_path / "latents.pt", vae.eval(), kind.language, kind.world, count=20, chunk=10)
    inner = {"image": (12, 8, 8), "video": (16, 5, 8, 8)}[kind.card["kind"]]
    assert data.latents.shape == (20, *inner)
    assert data.latents.float().std() == pytest.approx(1, rel=0.05)
    again = latents.make(tmp_path / "latents.pt", vae, kind.language, kind.world, count=20)
    assert torch.equal(again.ids, data.ids) and torch.equal(again.mean, data.mean)
    for steps in (2, 3):
        stage = denoiser.train(
            tmp_path / kind.checkpoint, kind, data, encoder.eval(), denoiser.Plan(steps=steps, batch=4)
        )
    assert stage.step == 3
    pipe = assemble.pipeline(kind, vae, encoder, stage.average, data)
    assemble.write(kind, pipe, tmp_path / name)
    card = read_model(tmp_path / name)
    assert (card.id, card.kind, card.defaults.width) == (name, kind.card["kind"], 64)
    assert card.vocabulary == tuple(kind.card["vocabulary"])
    few = card.defaults.model_copy(update={"num_inference_steps": 2})
    components = load_components(tmp_path / name)
    drawn = draw_batch(components, TorchDenoiser("float", load_denoiser(components)), ["a red circle"], [1], few)
    assert drawn.pictures.shape == (1, *(() if card.kind == "image" else (17,)), 3, 64, 64)
