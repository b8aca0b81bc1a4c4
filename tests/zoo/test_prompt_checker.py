"""The checker `shapes`: reads every caption of the world, whatever its wording, and pictures by it; leaves the rest."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest

from zoo.shapes.captions import caption
from zoo.shapes.draw import draw
from zoo.shapes.prompt_checker import Asked, Wanted, shows, understand
from zoo.shapes.world import Relation, random_scene


def test_captions_are_read_back() -> None:
    rng = np.random.default_rng(3)
    for number in range(400):
        scene = random_scene(rng, 1 + number % 2, unseen=bool(number % 3))
        without = frozenset({"size", "background"} if number % 5 == 0 else ())
        text = caption(scene, rng, without=without)
        asked = understand(text)
        assert asked is not None, text
        assert asked.background == (None if without else scene.background), text
        told = [(thing.shape, thing.colour, None if without else thing.size) for thing in scene.things]
        seen = [(thing.shape, thing.colour, thing.size) for thing in asked.things]
        if asked.relation == scene.relation:
            assert seen == told, text
        else:
            assert scene.relation is not None and asked.relation == scene.relation.opposite, text
            assert seen == told[::-1], text


def test_true_pictures_pass_and_others_fail() -> None:
    rng = np.random.default_rng(4)
    scenes = [random_scene(rng, 1 + number % 2, unseen=False) for number in range(60)]
    for scene, other in zip(scenes, scenes[2:] + scenes[:2], strict=True):
        text = caption(scene, rng)
        assert shows(text, draw(scene, rng)[None]) is True, text
        if (other.background, other.things, other.relation) != (scene.background, scene.things, scene.relation):
            assert shows(text, draw(other, rng)[None]) is False, text


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Red circle", Asked((Wanted("circle", "red", None),), None, None)),
        ("a box", Asked((Wanted("square", None, None),), None, None)),
        ("on a grey background, a huge plus", Asked((Wanted("cross", None, "large"),), None, "gray")),
        (
            "a ring on top of a tiny blue disc",
            Asked((Wanted("ring", None, None), Wanted("circle", "blue", "small")), Relation.ABOVE, None),
        ),
    ],
)
def test_what_is_left_unsaid_is_open(prompt: str, asked: Asked) -> None:
    assert understand(prompt) == asked


@pytest.mark.parametrize(
    "prompt", ["a red dog", "red", "a red circle, a blue square", "a circle left of a ring above a box", "a gray ring"]
)
def test_what_the_world_does_not_tell_is_not_judged(prompt: str) -> None:
    assert understand(prompt) is None
    assert shows(prompt, np.zeros((1, 64, 64, 3), np.uint8)) is None


def test_only_the_worlds_own_size_is_judged() -> None:
    assert shows("a red circle", np.zeros((1, 32, 32, 3), np.uint8)) is None
    assert shows("a red circle", np.zeros((2, 64, 64, 3), np.uint8)) is None


def test_it_is_installed_under_its_name() -> None:
    found = entry_points(group="halftone.checkers", name="shapes")
    assert [entry.load() for entry in found] == [shows]
