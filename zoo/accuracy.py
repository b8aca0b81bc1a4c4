"""`python -m zoo.accuracy`: the share of unseen prompts that a built-in model paints right, by the checker.

Every named attribute must be right: count, background, colour, shape, size, and how two things lie. Models of films
are judged by film_accuracy.py.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.model_folder import read_model
from pipelines.denoiser import TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.load import load_components, load_denoiser
from zoo.film_accuracy import report_films
from zoo.shapes.captions import caption
from zoo.shapes.checker import faults
from zoo.shapes.draw import draw
from zoo.shapes.world import Scene, random_scene

Picture = NDArray[np.uint8]
Painter = Callable[[list[str], list[int]], Iterable[Picture]]
"""Prompts and seeds to pictures, [64, 64, 3] uint8 each, or to films, [frames, 64, 64, 3]."""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt and the scene that its picture must show."""

    prompt: str
    scene: Scene


@dataclass(slots=True)
class Score:
    """How many prompts were painted right, and what was wrong with the others."""

    prompts: int = 0
    right: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def accuracy(self) -> float:
        """Share of prompts with every attribute right, 0 to 1."""
        return self.right / max(1, self.prompts)

    def as_json(self) -> dict[str, object]:
        """Plain JSON."""
        return {"prompts": self.prompts, "accuracy": self.accuracy, "faults": dict(self.faults)}

    def add(self, wrong: list[str]) -> None:
        """Count one picture."""
        self.prompts += 1
        self.right += not wrong
        self.faults.update(set(wrong))


def unseen(things: int, count: int, seed: int = 2026) -> list[Task]:
    """Prompts from combinations that training never shows, in random wordings that name every attribute."""
    rng = np.random.default_rng([seed, things])
    scenes = [random_scene(rng, things, unseen=True) for _ in range(count)]
    return [Task(caption(scene, rng), scene) for scene in scenes]


def score(tasks: list[Task], paint: Painter, *, first_seed: int = 0, batch: int = 25) -> Score:
    """Paint every prompt with its own seed and check the pictures."""
    result = Score()
    for begin in range(0, len(tasks), batch):
        part = tasks[begin : begin + batch]
        seeds = [first_seed + begin + i for i in range(len(part))]
        for task, picture in zip(part, paint([task.prompt for task in part], seeds), strict=True):
            result.add(faults(picture, task.scene))
    return result


def checker_error(count: int = 2000, seed: int = 7) -> float:
    """Share of true pictures of the world that the checker gets wrong in any attribute."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, 1 + i % 2, unseen=bool(rng.random() < 0.5)) for i in range(count)]
    return sum(bool(faults(draw(scene, rng), scene)) for scene in scenes) / count


def as_bytes(shown: Tensor) -> Picture:
    """A picture [3, H, W] or film [F, 3, H, W] float in 0..1 as checkers take it: [..., H, W, 3] uint8."""
    pixels: Picture = (shown.movedim(-3, -1).numpy() * 255).round().astype(np.uint8)
    return pixels


def painter(folder: Path, *, guidance: float | None = None) -> Painter:
    """Paints, or films, with the float model in a folder at its defaults, each from its own seed."""
    components, card = load_components(folder), read_model(folder)
    denoiser = TorchDenoiser("float", load_denoiser(components))
    defaults = card.defaults if guidance is None else card.defaults.model_copy(update={"guidance_scale": guidance})

    def paint(prompts: list[str], seeds: list[int]) -> list[Picture]:
        made = draw_batch(components, denoiser, prompts, seeds, defaults).pictures
        return [as_bytes(shown) for shown in made]

    return paint


def report(paint: Painter, count: int) -> dict[str, object]:
    """Scores for one and for two objects, as JSON-able data."""
    scores = {name: score(unseen(things, count), paint) for name, things in (("one", 1), ("two", 2))}
    return {name: value.as_json() for name, value in scores.items()}


def main() -> None:
    """Score the float model in a folder on unseen prompts, pictures or films, and print JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, default=Path("zoo/models/shapes-unet"))
    options.add_argument("--count", type=int, help="prompts: 250 for each number of objects, or 200 of films")
    options.add_argument("--guidance", type=float, help="by default the model's")
    choice = options.parse_args()
    paint = painter(choice.model, guidance=choice.guidance)
    if read_model(choice.model).kind == "video":
        print(json.dumps(report_films(paint, choice.count or 200), indent=1))
        return
    found = report(paint, choice.count or 250)
    print(json.dumps({**found, "checker_error": checker_error()}, indent=1))


if __name__ == "__main__":
    main()
