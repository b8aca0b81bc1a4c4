"""What models of the shapes world are asked, and how what they make is judged: pictures, or films. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from jobs.profile import Defaults
from pipelines.fidelity import Checker, Reference
from zoo.accuracy import Task, as_bytes, unseen
from zoo.film_accuracy import FilmTask, unseen_films
from zoo.frechet import ShapesWorld
from zoo.shapes.captions import caption
from zoo.shapes.checker import faults
from zoo.shapes.motion import random_moving_scene
from zoo.shapes.motion_captions import motion_caption
from zoo.shapes.motion_checker import film_faults
from zoo.shapes.world import random_scene

UNSEEN_SEED = 99


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt from combinations that training never shows, and what is wrong with what a model makes of it.

    Attributes:
        prompt: names every attribute.
        faults: of a picture [3, H, W], or a film [F, 3, H, W], float in 0..1: names of attributes; none is right.
    """

    prompt: str
    faults: Callable[[Tensor], list[str]]


@dataclass(frozen=True, slots=True)
class World:
    """One of the two.

    Attributes:
        captions: `captions(count, seed)`: of scenes as training shows them.
        asked: so many prompts, always the same.
        reference: pictures to take the Fréchet distance from; None where there is no such measure.
    """

    captions: Callable[[int, int], list[str]]
    asked: Callable[[int], list[Asked]]
    reference: Callable[[], Reference] | None


def world_of(defaults: Defaults) -> World:
    """What a model with these defaults makes."""
    return PICTURES if defaults.num_frames is None else FILMS


def checker_of(asked: Mapping[str, Asked]) -> Checker:
    """Whether what was made of a prompt shows all that it names; `asked` by prompt."""
    return lambda prompt, shown: not asked[prompt].faults(shown)


def _captions(count: int, seed: int) -> list[str]:
    """Half of them with one object."""
    rng = np.random.default_rng(seed)
    return [caption(random_scene(rng, 1 + i % 2, unseen=False), rng) for i in range(count)]


def _film_captions(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [motion_caption(random_moving_scene(rng, unseen=False), rng) for _ in range(count)]


def _asked(count: int) -> list[Asked]:
    """Half of them with one object, the two kinds in turn."""
    halves: Sequence[list[Task]] = (
        unseen(1, (count + 1) // 2, seed=UNSEEN_SEED),
        unseen(2, count // 2, seed=UNSEEN_SEED),
    )
    tasks = [halves[i % 2][i // 2] for i in range(count)]
    return [Asked(task.prompt, _picture_faults(task)) for task in tasks]


def _picture_faults(task: Task) -> Callable[[Tensor], list[str]]:
    return lambda picture: faults(as_bytes(picture), task.scene)


def _asked_films(count: int) -> list[Asked]:
    return [Asked(task.prompt, _film_faults(task)) for task in unseen_films(count, seed=UNSEEN_SEED)]


def _film_faults(task: FilmTask) -> Callable[[Tensor], list[str]]:
    return lambda film: film_faults(as_bytes(film), task.scene)


PICTURES = World(_captions, _asked, lambda: ShapesWorld(unseen=True))
FILMS = World(_film_captions, _asked_films, None)
