"""Stage 2 and 3 of the video model: captions of moving scenes with their meaning, and films with captions.

Knows the world in motion, no architecture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from zoo.shapes.film import film
from zoo.shapes.motion import FPS, FRAMES, Motion, MovingScene, random_moving_scene
from zoo.shapes.motion_captions import VOCABULARY, motion_caption
from zoo.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIDE
from zoo.train.films import Films, tensor

WORDS = tuple(sorted({*VOCABULARY, "and", "with", "in", "is", "there", "it", "its", "while", "small", "large"}))
"""What is one token each: the captions' words, and a few that prompts hold although no caption does."""

CARD: dict[str, Any] = {
    "kind": "video",
    "description": "A coloured shape that moves, grows, shrinks, spins, bounces or orbits before a plain background.",
    "defaults": {
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "fps": FPS,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
    },
    "limits": {
        "min_side": 32,
        "max_side": 128,
        "multiple_of": 16,
        "max_pixels": 16384,
        "max_steps": 50,
        "max_frames": 33,
        "frames_multiple_of": 4,
    },
    "trained_sizes": [[SIDE, SIDE]],
    "checker": "moving-shapes",
    "vocabulary": list(VOCABULARY),
}


def meaning(scene: MovingScene, *, background: bool) -> list[int]:
    """The class that each head must give: colour, shape, motion, and the background (0: unsaid)."""
    ground = 1 + list(BACKGROUNDS).index(scene.background) if background else 0
    motion = list(Motion).index(scene.motion)
    return [list(COLOURS).index(scene.colour), SHAPES.index(scene.shape), motion, ground]


def say(scene: MovingScene, rng: np.random.Generator, *, background: bool) -> str:
    """A random caption; now and then it begins as a sentence does."""
    words = motion_caption(scene, rng, background=background)
    return words.capitalize() if rng.random() < 0.15 else words


class Moving:
    """The world of films (`world.World`)."""

    autoencoder = Films()
    words = WORDS
    classes = (len(COLOURS), len(SHAPES), len(Motion), len(BACKGROUNDS) + 1)

    def saying(self, rng: np.random.Generator) -> tuple[str, list[int]]:
        """A random caption of a training scene, and the class that each head must give."""
        scene, background = random_moving_scene(rng, unseen=False), rng.random() >= 0.08
        return say(scene, rng, background=background), meaning(scene, background=background)

    def examples(self, rng: np.random.Generator, count: int, wordings: int) -> tuple[Tensor, list[str]]:
        """Random training films [count, 3, 17, 64, 64] float32 in -1..1, and so many captions of each, in order."""
        scenes = [random_moving_scene(rng, unseen=False) for _ in range(count)]
        films = tensor([film(scene, rng) for scene in scenes])
        return films, [say(scene, rng, background=rng.random() >= 0.08) for scene in scenes for _ in range(wordings)]
