"""The checker `moving-shapes`: reads every caption of moving scenes, whatever its wording, and films by it."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest

from zoo.shapes.film import film
from zoo.shapes.film_prompt_checker import AskedFilm, shows_film, understand_film
from zoo.shapes.motion import Motion, random_moving_scene
from zoo.shapes.motion_captions import motion_caption


def test_captions_are_read_back() -> None:
    rng = np.random.default_rng(3)
    for number in range(400):
        scene, background = random_moving_scene(rng, unseen=bool(number % 3)), bool(number % 5)
        text = motion_caption(scene, rng, background=background)
        expected = AskedFilm(scene.shape, scene.colour, scene.motion, scene.background if background else None)
        assert understand_film(text.capitalize() if number % 2 else text) == expected, text


def test_true_films_pass_and_others_fail() -> None:
    rng = np.random.default_rng(4)
    scenes = [random_moving_scene(rng, unseen=False) for _ in range(12)]
    for scene, other in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        text = motion_caption(scene, rng)
        assert shows_film(text, film(scene, rng)) is True, text
        assert other == scene or shows_film(text, film(other, rng)) is False, text
    assert shows_film("a red circle", np.full((17, 64, 64, 3), 255, np.uint8)) is False, "nothing is there"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Red circle", AskedFilm("circle", "red", None, None)),
        ("a box falls", AskedFilm("square", None, Motion.DOWN, None)),
        ("on a grey background, a plus jumping up and down", AskedFilm("cross", None, Motion.BOUNCE, "gray")),
        ("a clip of a blue disc going around in circles", AskedFilm("circle", "blue", Motion.ORBIT, None)),
    ],
)
def test_what_is_left_unsaid_is_open(prompt: str, asked: AskedFilm) -> None:
    assert understand_film(prompt) == asked


@pytest.mark.parametrize(
    "prompt",
    [
        *("a red dog", "red", "a red circle and a blue square", "a gray ring", "a red square to the left"),
        *("a red ring spins", "a red box moves left and falls"),
    ],
)
def test_what_the_world_does_not_tell_is_not_judged(prompt: str) -> None:
    assert understand_film(prompt) is None
    assert shows_film(prompt, np.zeros((17, 64, 64, 3), np.uint8)) is None


@pytest.mark.parametrize("shape", [(17, 32, 32, 3), (1, 64, 64, 3)])
def test_only_films_of_the_worlds_own_size_are_judged(shape: tuple[int, ...]) -> None:
    assert shows_film("a red circle", np.zeros(shape, np.uint8)) is None


def test_it_is_installed_under_its_name() -> None:
    found = entry_points(group="halftone.checkers", name="moving-shapes")
    assert [entry.load() for entry in found] == [shows_film]
