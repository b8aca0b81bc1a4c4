"""Scenes of the shapes world: what can be in a picture, how scenes are drawn at random, and which are held out.

Knows nothing of words (captions.py), pixels (draw.py) or models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (246, 140, 26),
    "yellow": (246, 218, 38),
    "green": (34, 160, 66),
    "cyan": (40, 205, 220),
    "blue": (40, 76, 220),
    "purple": (130, 48, 176),
    "pink": (246, 130, 190),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "beige": (226, 206, 170),
    "gray": (128, 128, 128),
    "black": (16, 16, 16),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES: dict[str, float] = {"small": 8.0, "large": 13.0}
"""Half the side of a shape's bounding box, in pixels of a 64x64 picture."""

SIDE = 64
"""Width and height of a picture, in pixels."""

HELD_OUT = 0.1
"""Share of the combinations that no training picture ever shows."""


class Relation(StrEnum):
    """Where the first object lies, seen from the second."""

    LEFT = "left of"
    RIGHT = "right of"
    ABOVE = "above"
    BELOW = "below"

    @property
    def opposite(self) -> Relation:
        """The relation of the second object to the first."""
        return _OPPOSITE[self]


_OPPOSITE = {
    Relation.LEFT: Relation.RIGHT,
    Relation.RIGHT: Relation.LEFT,
    Relation.ABOVE: Relation.BELOW,
    Relation.BELOW: Relation.ABOVE,
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: its colour, shape and size by name."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: one thing, or two and how the first lies to the second, on a background."""

    background: str
    things: tuple[Thing, ...]
    relation: Relation | None = None

    def swapped(self) -> Scene:
        """The same scene told from its other object."""
        if self.relation is None:
            return self
        return Scene(self.background, self.things[::-1], self.relation.opposite)


def held_out(scene: Scene) -> bool:
    """Whether a scene belongs to a combination kept out of training.

    One object: its (colour, shape, background) decides. Two: the unordered pair of their (colour, shape), whatever
    their sizes, relation and background.
    """
    pairs = sorted(f"{thing.colour} {thing.shape}" for thing in scene.things)
    key = "|".join(pairs) if scene.relation else f"{pairs[0]}|{scene.background}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32 < HELD_OUT


def random_thing(rng: np.random.Generator) -> Thing:
    """A thing drawn uniformly."""
    return Thing(str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(list(SIZES))))


def random_scene(rng: np.random.Generator, things: int, *, unseen: bool) -> Scene:
    """A scene with one or two things, from the held-out combinations or from those used in training.

    Two things always differ in colour or shape, so that a sentence can tell them apart.
    """
    while True:
        background = str(rng.choice(list(BACKGROUNDS)))
        chosen = tuple(random_thing(rng) for _ in range(things))
        relation = Relation(str(rng.choice([r.value for r in Relation]))) if things > 1 else None
        scene = Scene(background, chosen, relation)
        distinct = len({(thing.colour, thing.shape) for thing in chosen}) == things
        if distinct and held_out(scene) == unseen:
            return scene


def places(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres (x, y) in pixels for the things of a scene: jittered round the middle, or on the two sides of it."""
    middle = SIDE / 2
    if scene.relation is None:
        return [(middle + rng.uniform(-4, 4), middle + rng.uniform(-4, 4))]
    near, far = SIDE / 4 + rng.uniform(-1.5, 1.5), 3 * SIDE / 4 + rng.uniform(-1.5, 1.5)
    across = [middle + rng.uniform(-4, 4) for _ in range(2)]
    first, second = (near, far) if scene.relation in (Relation.LEFT, Relation.ABOVE) else (far, near)
    if scene.relation in (Relation.LEFT, Relation.RIGHT):
        return [(first, across[0]), (second, across[1])]
    return [(across[0], first), (across[1], second)]
