"""The shipped video model shows what prompts say, moving as they say, and what is still stays still."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from jobs.model_folder import read_model
from zoo.accuracy import painter
from zoo.build import ZOO
from zoo.film_accuracy import FilmScore, score_films, unseen_films
from zoo.shapes.film import film
from zoo.shapes.motion import random_moving_scene
from zoo.train.films import tensor

FOLDER = ZOO / "models" / "shapes-video"


@pytest.fixture(scope="module")
def found() -> FilmScore:
    return score_films(unseen_films(60), painter(FOLDER))


def test_unseen_prompts_are_shown_right(found: FilmScore) -> None:
    assert found.share(found.things) >= 0.85, found
    assert found.share(found.motions) >= 0.75, found


def test_still_parts_do_not_flicker(found: FilmScore) -> None:
    assert len(found.flicker) == found.prompts
    assert np.mean(found.flicker) < 0.5  # levels of 255


def test_its_card_says_what_it_is() -> None:
    card = read_model(FOLDER)
    assert (card.kind, card.checker, card.id) == ("video", "moving-shapes", "shapes-video")


def test_plain_diffusers_runs_it_and_its_autoencoder_is_crisp() -> None:
    pipe = WanPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a red square moving left on a white background", height=64, width=64, num_frames=17,
                num_inference_steps=2, output_type="np").frames  # fmt: skip
    assert made.shape == (1, 17, 64, 64, 3)
    rng = np.random.default_rng(5)
    truth = tensor([film(random_moving_scene(rng, unseen=True), rng) for _ in range(8)])
    with torch.inference_mode():
        restored = pipe.vae.decode(pipe.vae.encode(truth).latent_dist.mean).sample
    assert 10 * np.log10(4 / (restored - truth).pow(2).mean().item()) >= 34
