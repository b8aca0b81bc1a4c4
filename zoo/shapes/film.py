"""Films of the shapes world: draws moving scenes frame by frame with smooth edges. Knows no words and no models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zoo.shapes.draw import DISTANCE
from zoo.shapes.motion import FRAMES, MovingScene, Pose, pose
from zoo.shapes.world import BACKGROUNDS, COLOURS, SIDE


@dataclass(frozen=True, slots=True)
class Window:
    """A square part of every frame, in pixels."""

    left: int = 0
    top: int = 0
    side: int = SIDE


WHOLE = Window()


def coverage(shape: str, way: Pose, window: Window = WHOLE) -> NDArray[np.float32]:
    """Share of each pixel of a window that a shape covers, [frames, side, side] float32 in 0..1."""
    x, y, radius, angle = (track[:, None, None] for track in (way.x, way.y, way.radius, way.angle))
    steps = np.arange(window.side, dtype=np.float32) + np.float32(0.5)
    across, down = window.left + steps[None, None, :] - x, window.top + steps[None, :, None] - y
    # the picture is turned back under a shape that stands upright
    level = np.cos(angle) * across + np.sin(angle) * down
    plumb = np.cos(angle) * down - np.sin(angle) * across
    covered: NDArray[np.float32] = np.clip(0.5 - DISTANCE[shape](level, plumb, radius), 0, 1)
    return covered


def paint(scene: MovingScene, way: Pose, window: Window = WHOLE) -> NDArray[np.uint8]:
    """A window of a scene whose thing goes a given way, [frames, side, side, 3] uint8."""
    mask = coverage(scene.shape, way, window)[..., None]
    ground, colour = (np.array(rgb, np.float32) for rgb in (BACKGROUNDS[scene.background], COLOURS[scene.colour]))
    drawn: NDArray[np.uint8] = np.rint(ground + mask * (colour - ground)).astype(np.uint8)
    return drawn


def film(scene: MovingScene, rng: np.random.Generator, frames: int = FRAMES) -> NDArray[np.uint8]:
    """A film of a scene, [frames, SIDE, SIDE, 3] uint8, its thing placed, sized and started with a little jitter."""
    return paint(scene, pose(scene.motion, rng, frames))
