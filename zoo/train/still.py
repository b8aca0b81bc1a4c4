"""Stage 2 and 3 of the picture models: captions of still scenes with their meaning, and pictures with captions.

Knows the still world, no architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from zoo.shapes.captions import VOCABULARY, caption
from zoo.shapes.draw import draw
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Relation, Scene, random_scene
from zoo.train.pictures import Pictures, tensor

WORDS = tuple(sorted({*VOCABULARY, "and", "with", "in", "is", "there", "next", "it", "its"}))
"""What is one token each: the captions' words, and a few that prompts hold although no caption does."""
PLACES = ("middle", "left", "right", "top", "bottom")
_SIDES = {Relation.LEFT: (1, 2), Relation.RIGHT: (2, 1), Relation.ABOVE: (3, 4), Relation.BELOW: (4, 3)}
_VALUES = [len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 2]
CLASSES = [*(_VALUES * len(PLACES)), len(BACKGROUNDS) + 1, len(COLOURS)]
"""Size of each head: colour, shape, size at each place (0: nothing there; last size: unsaid), the background, and the
colour that is named first. An encoder that sees positions by their distance alone must learn order before it can tell
which of two things lies where, and does not learn it from the places alone."""


@dataclass(frozen=True, slots=True)
class Saying:
    """A caption, its scene, and which attributes it left unsaid."""

    text: str
    scene: Scene
    without: frozenset[str]


def say(scene: Scene, rng: np.random.Generator) -> Saying:
    """A random caption; now and then the sizes or the background are left unsaid, or it begins as a sentence does."""
    without = frozenset(name for name in ("size", "background") if rng.random() < 0.08)
    words = caption(scene, rng, without=without)
    return Saying(words.capitalize() if rng.random() < 0.15 else words, scene, without)


def meaning(saying: Saying) -> list[int]:
    """The class that each head must give, in the order of CLASSES."""
    slots = _SIDES[saying.scene.relation] if saying.scene.relation else (0,)
    classes = [0] * (3 * len(PLACES) + 2)
    for slot, thing in zip(slots, saying.scene.things, strict=True):
        classes[3 * slot] = 1 + list(COLOURS).index(thing.colour)
        classes[3 * slot + 1] = 1 + SHAPES.index(thing.shape)
        classes[3 * slot + 2] = len(SIZES) + 1 if "size" in saying.without else 1 + list(SIZES).index(thing.size)
    if "background" not in saying.without:
        classes[-2] = 1 + list(BACKGROUNDS).index(saying.scene.background)
    classes[-1] = next(list(COLOURS).index(word) for word in saying.text.lower().split() if word in COLOURS)
    return classes


CARD: dict[str, Any] = {
    "kind": "image",
    "checker": "shapes",
    "description": "Coloured shapes on plain backgrounds: one or two objects, their sizes and how they lie.",
    "defaults": {"width": 64, "height": 64, "num_inference_steps": 25, "guidance_scale": 3.0},
    "limits": {"min_side": 32, "max_side": 128, "multiple_of": 16, "max_pixels": 16384, "max_steps": 50},
    "trained_sizes": [[64, 64]],
    "vocabulary": list(VOCABULARY),
}


class Still:
    """The world of pictures (`world.World`)."""

    autoencoder = Pictures()
    words = WORDS
    classes = tuple(CLASSES)

    def saying(self, rng: np.random.Generator) -> tuple[str, list[int]]:
        """A random caption of a training scene, and the class that each head must give."""
        told = say(random_scene(rng, 1 + int(rng.random() < 0.7), unseen=False), rng)
        return told.text, meaning(told)

    def examples(self, rng: np.random.Generator, count: int, wordings: int) -> tuple[Tensor, list[str]]:
        """Random training pictures [count, 3, 64, 64] float32 in -1..1, and so many captions of each, in order."""
        scenes = [random_scene(rng, 1 + int(rng.random() < 0.68), unseen=False) for _ in range(count)]
        pictures = tensor([draw(scene, rng) for scene in scenes])
        return pictures, [say(scene, rng).text for scene in scenes for _ in range(wordings)]
