"""The share of unseen prompts that a video model shows right, by the checker: thing and motion each, and flicker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zoo.shapes.film import film
from zoo.shapes.flicker import flicker, still_parts
from zoo.shapes.motion import MovingScene, random_moving_scene
from zoo.shapes.motion_captions import motion_caption
from zoo.shapes.motion_checker import film_faults

Film = NDArray[np.uint8]
Filmer = Callable[[list[str], list[int]], Iterable[Film]]
"""Prompts and seeds to films, [frames, 64, 64, 3] uint8 each."""


def object_right(wrong: Iterable[str]) -> bool:
    """Whether a film's object is right by its faults, whatever it does and whatever lies behind it."""
    return {"count", "colour", "shape"}.isdisjoint(wrong)


def motion_right(wrong: Iterable[str]) -> bool:
    """Whether a film's motion is right by its faults; where several things or none are seen there is none to tell."""
    return {"count", "motion"}.isdisjoint(wrong)


@dataclass(frozen=True, slots=True)
class FilmTask:
    """A prompt and the moving scene that its film must show."""

    prompt: str
    scene: MovingScene


@dataclass(slots=True)
class FilmScore:
    """How many films show the right object, the right motion, everything; what was wrong; how much still parts change.

    Attributes:
        flicker: mean change of still parts between frames, in levels of 255; one entry per film that has still parts.
    """

    prompts: int = 0
    right: int = 0
    things: int = 0
    motions: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    flicker: list[float] = field(default_factory=list)

    def add(self, shown: Film, scene: MovingScene) -> None:
        """Judge one film."""
        wrong = film_faults(shown, scene)
        self.prompts += 1
        self.right += not wrong
        self.things += object_right(wrong)
        self.motions += motion_right(wrong)
        self.faults.update(wrong)
        still = still_parts(shown)
        if still.any():
            self.flicker.append(flicker(shown, still))

    def share(self, right: int) -> float:
        """A share of all prompts, 0 to 1."""
        return right / max(1, self.prompts)

    def as_json(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "prompts": self.prompts,
            "accuracy": self.share(self.right),
            "object_accuracy": self.share(self.things),
            "motion_accuracy": self.share(self.motions),
            "faults": dict(self.faults),
            "flicker": float(np.mean(self.flicker)) if self.flicker else None,
        }


def unseen_films(count: int, seed: int = 2026) -> list[FilmTask]:
    """Prompts from combinations that training never shows, in random wordings that name every attribute."""
    rng = np.random.default_rng(seed)
    scenes = [random_moving_scene(rng, unseen=True) for _ in range(count)]
    return [FilmTask(motion_caption(scene, rng), scene) for scene in scenes]


def score_films(tasks: list[FilmTask], make: Filmer, *, first_seed: int = 0, batch: int = 10) -> FilmScore:
    """Film every prompt with its own seed and check the films."""
    result = FilmScore()
    for begin in range(0, len(tasks), batch):
        part = tasks[begin : begin + batch]
        seeds = [first_seed + begin + i for i in range(len(part))]
        for task, shown in zip(part, make([task.prompt for task in part], seeds), strict=True):
            result.add(shown, task.scene)
    return result


def film_checker_error(count: int = 2000, seed: int = 7) -> float:
    """Share of true films of the world that the checker gets wrong in any attribute."""
    rng = np.random.default_rng(seed)
    scenes = [random_moving_scene(rng, unseen=bool(rng.random() < 0.5)) for _ in range(count)]
    return sum(bool(film_faults(film(scene, rng), scene)) for scene in scenes) / count


def report_films(make: Filmer, count: int) -> dict[str, object]:
    """The score on unseen prompts and the checker's own error, as JSON-able data."""
    return {**score_films(unseen_films(count), make).as_json(), "checker_error": film_checker_error()}
