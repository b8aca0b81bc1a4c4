"""Films are judged as they are: true ones right, wrong ones by what is wrong with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from zoo.film_accuracy import film_checker_error, score_films, unseen_films
from zoo.shapes.film import film
from zoo.shapes.motion import Motion, held_out

Film = NDArray[np.uint8]
TASKS = [task for task in unseen_films(60) if task.scene.motion is not Motion.SPIN][:20]


def true_film(prompt: str, seed: int) -> Film:
    scene = next(task.scene for task in TASKS if task.prompt == prompt)
    return film(scene, np.random.default_rng(seed))


def true_films(prompts: list[str], seeds: list[int]) -> list[Film]:
    return [true_film(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]


def test_tasks_are_unseen_and_their_films_right() -> None:
    assert all(held_out(task.scene) for task in unseen_films(100))
    score = score_films(TASKS, true_films, batch=7)
    assert score.as_json() == {
        "prompts": 20,
        "accuracy": 1.0,
        "object_accuracy": 1.0,
        "motion_accuracy": 1.0,
        "faults": {},
        "flicker": 0.0,
    }
    assert film_checker_error(60) == 0


def test_a_wrong_motion_is_no_fault_of_the_object_and_flicker_is_measured() -> None:
    def frozen(prompts: list[str], seeds: list[int]) -> list[Film]:
        return [shown[[0] * len(shown)] for shown in true_films(prompts, seeds)]

    def flashing(prompts: list[str], seeds: list[int]) -> list[Film]:
        shown = [made.astype(int) for made in true_films(prompts, seeds)]
        for made in shown:
            made[1::2] += np.where(made[1::2] < 128, 2, -2)
        return [made.astype(np.uint8) for made in shown]

    still = score_films(TASKS, frozen)
    assert (still.things, still.motions, still.right) == (20, 0, 0)
    assert still.faults == {"motion": 20}
    assert np.mean(score_films(TASKS, flashing).flicker) == pytest.approx(2, abs=0.1)


def test_films_of_other_scenes_are_wrong() -> None:
    swapped = [replace(task, scene=TASKS[i - 1].scene) for i, task in enumerate(TASKS)]

    def make(prompts: list[str], seeds: list[int]) -> list[Film]:
        return true_films(prompts, seeds)

    assert score_films(swapped, make).right <= 2
