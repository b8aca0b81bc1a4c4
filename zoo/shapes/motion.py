"""Scenes in motion of the shapes world: one thing that does one thing, on a background, and where it is when.

Knows nothing of words (motion_captions.py), pixels (film.py) or models. Colours and shapes are the still world's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from zoo.shapes.world import BACKGROUNDS, COLOURS, HELD_OUT, SHAPES, SIDE

FRAMES = 17
"""Frames of a film: the first, and four for each further step of an autoencoder that packs four frames into one."""
FPS = 8
ROUND = frozenset({"circle", "ring"})
"""Shapes whose turning nobody can see."""

Track = NDArray[np.float32]


class Motion(StrEnum):
    """What a thing does during a film."""

    LEFT = "moving left"
    RIGHT = "moving right"
    UP = "moving up"
    DOWN = "moving down"
    GROW = "growing"
    SHRINK = "shrinking"
    SPIN = "spinning"
    BOUNCE = "bouncing"
    ORBIT = "orbiting"


@dataclass(frozen=True, slots=True)
class MovingScene:
    """What a film shows: a thing by colour and shape, what it does, and what lies behind it.

    Raises `ValueError` for a circle or a ring that spins: no frame of it would differ from another.
    """

    background: str
    colour: str
    shape: str
    motion: Motion

    def __post_init__(self) -> None:
        if self.motion is Motion.SPIN and self.shape in ROUND:
            corners = [shape for shape in SHAPES if shape not in ROUND]
            raise ValueError(f"a spinning {self.shape} looks still; what spins is one of {', '.join(corners)}")


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a thing is in every frame, [frames] float32 each: its centre and half side in pixels, its turn clockwise
    in radians."""

    x: Track
    y: Track
    radius: Track
    angle: Track

    def part(self, first: int, frames: int) -> Pose:
        """Some frames of the way."""
        kept = slice(first, first + frames)
        return Pose(self.x[kept], self.y[kept], self.radius[kept], self.angle[kept])


def held_out(scene: MovingScene) -> bool:
    """Whether a scene belongs to a combination (colour, shape, motion) that no training film shows."""
    key = f"{scene.colour} {scene.shape}|{scene.motion.value}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) / 2**32 < HELD_OUT


def random_moving_scene(rng: np.random.Generator, *, unseen: bool) -> MovingScene:
    """A scene from the held-out combinations or from those used in training: first the motion, all as often, then the
    rest, uniformly."""
    motions = list(Motion)
    motion = motions[int(rng.integers(len(motions)))]
    shapes = [shape for shape in SHAPES if motion is not Motion.SPIN or shape not in ROUND]
    while True:
        background, colour = str(rng.choice(list(BACKGROUNDS))), str(rng.choice(list(COLOURS)))
        scene = MovingScene(background, colour, str(rng.choice(shapes)), motion)
        if held_out(scene) == unseen:
            return scene


def _steady(value: float, time: Track) -> Track:
    return np.full_like(time, value)


def _around(rng: np.random.Generator, spread: float) -> float:
    return SIDE / 2 + rng.uniform(-spread, spread)


def _slide(rng: np.random.Generator, time: Track, sign: int) -> tuple[Track, Track]:
    """Along and across a straight way of about 30 pixels through the middle."""
    along = _around(rng, 1.5) + sign * (15 + rng.uniform(-1, 1)) * (2 * time - 1)
    return along, _steady(_around(rng, 5), time)


def _sideways(sign: int) -> Callable[[np.random.Generator, Track], Pose]:
    def pose(rng: np.random.Generator, time: Track) -> Pose:
        along, across = _slide(rng, time, sign)
        return Pose(along, across, _steady(11 + rng.uniform(-1, 1), time), 0 * time)

    return pose


def _upright(sign: int) -> Callable[[np.random.Generator, Track], Pose]:
    def pose(rng: np.random.Generator, time: Track) -> Pose:
        along, across = _slide(rng, time, sign)
        return Pose(across, along, _steady(11 + rng.uniform(-1, 1), time), 0 * time)

    return pose


def _swell(rng: np.random.Generator, time: Track) -> Pose:
    small, large = 6.5 + rng.uniform(-0.5, 0.5), 16 + rng.uniform(-1, 1)
    x, y = _steady(_around(rng, 4), time), _steady(_around(rng, 4), time)
    return Pose(x, y, small + (large - small) * time, 0 * time)


def _dwindle(rng: np.random.Generator, time: Track) -> Pose:
    return _swell(rng, 1 - time)


def _spin(rng: np.random.Generator, time: Track) -> Pose:
    x, y = _steady(_around(rng, 4), time), _steady(_around(rng, 4), time)
    angle = np.radians(rng.uniform(-4, 4) + 150 * time)
    return Pose(x, y, _steady(13 + rng.uniform(-1, 1), time), angle)


def _bounce(rng: np.random.Generator, time: Track) -> Pose:
    """From above to the floor, up again, and to the floor: two impacts."""
    floor, height = 47 + rng.uniform(-2, 2), 24 + rng.uniform(-2, 2)
    y = floor - height * np.abs(np.cos(1.5 * np.pi * time))
    return Pose(_steady(_around(rng, 6), time), y, _steady(10 + rng.uniform(-1, 1), time), 0 * time)


def _orbit(rng: np.random.Generator, time: Track) -> Pose:
    """Once round the middle, clockwise, from the top."""
    turn = np.radians(-90 + rng.uniform(-8, 8) + 360 * time)
    radius = 15 + rng.uniform(-1, 1)
    x, y = _around(rng, 2) + radius * np.cos(turn), _around(rng, 2) + radius * np.sin(turn)
    return Pose(x, y, _steady(9 + rng.uniform(-0.7, 0.7), time), 0 * time)


_WAYS: dict[Motion, Callable[[np.random.Generator, Track], Pose]] = {
    Motion.LEFT: _sideways(-1),
    Motion.RIGHT: _sideways(1),
    Motion.UP: _upright(-1),
    Motion.DOWN: _upright(1),
    Motion.GROW: _swell,
    Motion.SHRINK: _dwindle,
    Motion.SPIN: _spin,
    Motion.BOUNCE: _bounce,
    Motion.ORBIT: _orbit,
}


def pose(motion: Motion, rng: np.random.Generator, frames: int = FRAMES) -> Pose:
    """A way through a film for a motion, with a little jitter; the whole motion whatever the number of frames.

    Raises `ValueError` for fewer than two frames: one shows no motion.
    """
    if frames < 2:
        raise ValueError(f"a motion needs at least 2 frames, got {frames}")
    return _WAYS[motion](rng, np.linspace(0, 1, frames, dtype=np.float32))
