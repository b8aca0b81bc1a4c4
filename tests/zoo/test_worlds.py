"""What models of the shapes world are asked: the same each time, of the right kind, and judged."""

from __future__ import annotations

import numpy as np
import torch

from jobs.profile import Defaults
from zoo.film_accuracy import unseen_films
from zoo.shapes.film import film
from zoo.worlds import FILMS, PICTURES, UNSEEN_SEED, world_of

AT = Defaults(width=64, height=64, num_inference_steps=2, guidance_scale=3.0)


def test_worlds_ask_the_same_each_time_and_judge() -> None:
    for world, shape in ((PICTURES, (3, 64, 64)), (FILMS, (5, 3, 64, 64))):
        assert len(set(world.captions(8, 1))) > 4 and world.captions(3, 1) == world.captions(8, 1)[:3]
        assert world.captions(3, 1) != world.captions(3, 2)
        asked = world.asked(5)
        assert [one.prompt for one in asked] == [one.prompt for one in world.asked(5)]
        assert "count" in asked[0].faults(torch.zeros(shape))
    assert world_of(AT) is PICTURES
    assert world_of(AT.model_copy(update={"num_frames": 5, "fps": 8})) is FILMS


def test_a_true_film_has_no_faults() -> None:
    tasks, asked = unseen_films(4, seed=UNSEEN_SEED), FILMS.asked(4)
    for task, one in zip(tasks, asked, strict=True):
        shown = torch.from_numpy(film(task.scene, np.random.default_rng(0))).permute(0, 3, 1, 2) / 255
        assert task.prompt == one.prompt and one.faults(shown) == []
