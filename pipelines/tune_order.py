"""What is asked of a recipe's search and what it answers, as data; and the recipe that every search begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

import quant
from jobs.profile import Defaults
from pipelines.families import Subject
from pipelines.fidelity import Checker, ProfileFidelity
from pipelines.quantized import Means
from quant.recipe import Recipe, Sensitive
from quant.recipe_parts import Rounding
from quant.tuning.costs import Objective

FORMAT = 1
"""Version of what is kept on disk between runs, and beside artifacts."""


IDENTICAL_DB = 120.0
"""Stands for the PSNR of identical pictures where it is to be compared."""

MOST_OF_FLOAT = 0.75
"""Share of float's bytes beyond which a recipe is no answer: the promise was kept by leaving layers as they were."""


class OutOfReach(quant.QuantError):
    """No recipe keeps the promise; the message says what the best one reached."""


@dataclass(frozen=True)
class TuneOrder:
    """What is to be found.

    Attributes:
        folder: the model, in diffusers layout.
        out: the artifact's folder; its name is the profile's.
        model: the model's id.
        objective: what is to be least.
        min_psnr_db: mean PSNR to float that pictures of held-out subjects must have.
        subjects: to calibrate and measure on.
        checked: others, which every recipe is drawn on.
        held_out: others again, which the found one is held to at last.
        defaults: at which settings.
        work: where measurements, rounds and plans are kept until all is done; orders of one model may share it.
        means: what a backend may use.
        seed: of all that is drawn to measure.
        probed: pictures that are drawn with gradients.
        checker: whether a picture shows its prompt.
        learned_on: others again, for weights to learn their rounding on, once recipes that round to nearest have told
            what errors are worth in pictures. Without, the recipe rounds to nearest.
    """

    folder: Path
    out: Path
    model: str
    objective: Objective
    min_psnr_db: float
    subjects: Sequence[Subject]
    checked: Sequence[Subject]
    held_out: Sequence[Subject]
    defaults: Defaults
    work: Path
    means: Means
    seed: int = 0
    probed: int = 16
    checker: Checker | None = None
    learned_on: Sequence[Subject] = ()


class Round(BaseModel):
    """A recipe that was built and drawn: what it was expected to be, and what it is; whether it learned rounding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    expected_psnr_db: float
    psnr_db: float
    bytes: int
    expected_bytes: float
    expected_seconds: float
    learned: bool = False


class Spot(BaseModel):
    """A recipe on the way from the coarsest to the finest, as expected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    psnr_db: float
    bytes: float
    seconds: float


class Story(BaseModel):
    """How a recipe was found: all rounds in order, and the frontier as it is expected by then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    objective: Objective
    min_psnr_db: float
    rounds: tuple[Round, ...]
    frontier: tuple[Spot, ...]


class Kept(NamedTuple):
    """A recipe that keeps the promise: what the objective is expected to cost, and the artifact's folder."""

    cost: float
    recipe: Recipe
    place: Path


@dataclass(frozen=True)
class Tuned:
    """What was found: the artifact's manifest, and how."""

    manifest: Path
    story: Story


def base_recipe() -> Recipe:
    """What every tuned recipe begins with: rotations and factors that cost nothing, tables for temporal layers."""
    recipe = quant.load_recipe("trdq-w8a8")
    changes = {
        "rotation": recipe.rotation.model_copy(update={"online": "none"}),
        "temporal": recipe.temporal.model_copy(update={"maintenance": "cache", "storage": "int8"}),
        "weights": recipe.weights.model_copy(update={"bits": 4}),
        "sensitive": Sensitive(),
    }
    return recipe.model_copy(update=changes)


def learned_rounding() -> Rounding:
    """How recipes that are tuned learn: as the shipped ones."""
    return quant.load_recipe("trdq-w4a8").rounding


def shortfall(promise_db: float, rounds: Sequence[Round], float_bytes: int, held_out: float | None) -> str:
    """What to tell where a promise cannot be kept; `held_out` is what held-out pictures had, if it came to them."""
    told = f"no recipe of at most {MOST_OF_FLOAT:.0%} of float's bytes reaches {promise_db:g} dB"
    if held_out is not None:
        return f"{told} on pictures that were held out: after {len(rounds)} recipes it is {held_out:.1f} dB"
    smaller = [one for one in rounds if one.bytes <= MOST_OF_FLOAT * float_bytes]
    if not smaller:
        return f"{told}: none of {len(rounds)} that were built was that small; ask for less"
    best = max(smaller, key=lambda one: one.psnr_db)
    return f"{told}: the best of {len(rounds)} has {best.psnr_db:.1f} dB at {best.bytes / 1e6:.2f} MB"


def decibels(found: ProfileFidelity) -> float:
    """Mean PSNR; that of pictures which are all identical to float's is no number."""
    return IDENTICAL_DB if found.psnr_db is None else found.psnr_db
