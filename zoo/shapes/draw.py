"""Pictures of the shapes world: draws scenes with smooth edges. Knows geometry and colour, not words or models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.shapes.world import BACKGROUNDS, COLOURS, SIDE, SIZES, Scene, places

Plane = NDArray[np.floating[Any]]
Radius = float | Plane
"""Of one picture, or of each picture of a stack [count, 1, 1]."""


def _circle(x: Plane, y: Plane, r: Radius) -> Plane:
    return np.hypot(x, y) - r


def _square(x: Plane, y: Plane, r: Radius) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - r


def _triangle(x: Plane, y: Plane, r: Radius) -> Plane:
    slope = np.sqrt(5.0)
    distance: Plane = np.maximum(y - r, (2 * np.abs(x) - y - r) / slope)
    return distance


def _diamond(x: Plane, y: Plane, r: Radius) -> Plane:
    distance: Plane = (np.abs(x) + np.abs(y) - r) / np.sqrt(2.0)
    return distance


def _cross(x: Plane, y: Plane, r: Radius) -> Plane:
    bar = r / 3
    wide = np.maximum(np.abs(x) - r, np.abs(y) - bar)
    tall = np.maximum(np.abs(x) - bar, np.abs(y) - r)
    return np.minimum(wide, tall)


def _ring(x: Plane, y: Plane, r: Radius) -> Plane:
    return np.abs(np.hypot(x, y) - 0.72 * r) - 0.28 * r


DISTANCE: dict[str, Callable[[Plane, Plane, Radius], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
}
"""Signed distance in pixels to each shape's outline, negative inside; every shape fills a box of side 2r."""

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5


def coverage(shape: str, centre: tuple[float, float], radius: float) -> NDArray[np.float32]:
    """Share of each pixel that a shape covers, [SIDE, SIDE] float32 in 0..1."""
    distance = DISTANCE[shape](_X - centre[0], _Y - centre[1], radius)
    covered: Plane = np.clip(0.5 - distance, 0, 1)
    return covered.astype(np.float32)


def draw(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of a scene, [SIDE, SIDE, 3] uint8, its things placed and sized with a little jitter."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing, centre in zip(scene.things, places(scene, rng), strict=True):
        mask = coverage(thing.shape, centre, SIZES[thing.size] + rng.uniform(-0.6, 0.6))[..., None]
        picture += mask * (np.array(COLOURS[thing.colour], np.float32) - picture)
    drawn: NDArray[np.uint8] = np.rint(picture).astype(np.uint8)
    return drawn
