"""The shapes world: its checker reads true pictures, catches false ones, and held-out combinations stay out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zoo.accuracy import checker_error, unseen
from zoo.shapes.captions import VOCABULARY, caption, unknown_words
from zoo.shapes.checker import faults, read
from zoo.shapes.draw import draw
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, Relation, Scene, Thing, held_out, random_scene

RED = Thing("red", "circle", "large")
BLUE = Thing("blue", "square", "small")
SCENE = Scene("beige", (RED, BLUE), Relation.LEFT)


def test_checker_reads_true_pictures() -> None:
    assert checker_error(2000, seed=11) < 0.01


def test_checker_survives_noise() -> None:
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng, 1 + i % 2, unseen=False) for i in range(200)]
    noisy = [np.clip(draw(s, rng) + rng.normal(0, 6, (64, 64, 3)), 0, 255).astype(np.uint8) for s in scenes]
    assert sum(bool(faults(p, s)) for p, s in zip(noisy, scenes, strict=True)) <= 4


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (replace(SCENE, background="white"), "background"),
        (replace(SCENE, relation=Relation.RIGHT), "relation"),
        (replace(SCENE, things=(Thing("pink", "circle", "large"), BLUE)), "colour"),
        (replace(SCENE, things=(Thing("red", "ring", "large"), BLUE)), "shape"),
        (replace(SCENE, things=(RED, Thing("blue", "square", "large"))), "size"),
        (Scene("beige", (RED,)), "count"),
    ],
)
def test_checker_names_what_is_wrong(wrong: Scene, fault: str) -> None:
    picture = draw(SCENE, np.random.default_rng(3))
    assert faults(picture, SCENE) == []
    assert faults(picture, wrong) == [fault]


def test_swapped_scene_is_the_same_picture() -> None:
    assert faults(draw(SCENE, np.random.default_rng(0)), SCENE.swapped()) == []


def test_checker_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="64x64"):
        read(np.zeros((32, 32, 3), np.uint8))


def test_captions_name_everything_with_known_words() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        scene = random_scene(rng, 2, unseen=False)
        text = caption(scene, rng)
        assert unknown_words(text) == []
        assert all(thing.colour in text for thing in scene.things)


def test_plain_caption() -> None:
    expected = "a large red circle left of a small blue square on a beige background"
    assert caption(SCENE, np.random.default_rng(0), plain=True) == expected


def test_unknown_words_are_found_once_each() -> None:
    assert unknown_words("a furry red Dragon, dragon!") == ["furry", "dragon"]


def test_training_and_unseen_prompts_never_meet() -> None:
    rng = np.random.default_rng(2)
    assert not any(held_out(random_scene(rng, 1 + i % 2, unseen=False)) for i in range(500))
    assert all(held_out(task.scene) for things in (1, 2) for task in unseen(things, 100))


def test_world_is_as_large_as_promised() -> None:
    assert (len(COLOURS), len(SHAPES), len(BACKGROUNDS), len(Relation)) == (8, 6, 4, 4)
    assert {"red", "circle", "left", "grey"} <= set(VOCABULARY)
