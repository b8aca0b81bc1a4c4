"""`python -m bench tune`: tuned recipes beside every recipe that is shipped, on both built-in models.

Every row is made and measured by itself and kept under build/tune/, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import tune_report
from bench.machine import describe
from bench.table import Found, Kept, compared, each_row
from jobs.profile import FLOAT
from pipelines import calibrate
from pipelines.beside import timed
from pipelines.denoiser import Denoiser
from pipelines.load import quiet
from pipelines.quantized import load_profile
from pipelines.tune import STORY, tune_folder
from pipelines.tune_order import Story, TuneOrder
from quant import MANIFEST, read_manifest
from quant.tuning.costs import Objective
from zoo.build import ZOO, Means, Model, calibration_prompts, card_of, model_defaults, open_model, timed_prompts
from zoo.worlds import Asked, checker_of, world_of

WORK = Path("build/tune")
PROMPTS = 64
"""Unseen prompts that rows are compared on; searches know none of them."""

MEASURED, CHECKED, HELD_OUT = 16, 24, 40

LEARNED_ON = 240
"""Calibration prompts that rounding is learned on, beside those that are measured on."""

ROUNDS = 7
"""That a picture's time is the median of."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is tuned for."""

    objective: Objective
    min_psnr_db: float
    learned: bool = False

    @property
    def profile(self) -> str:
        """Its name."""
        return f"tuned-{self.objective}-{self.min_psnr_db:g}{'-learned' if self.learned else ''}"


PROMISES: Final[dict[str, tuple[Promise, ...]]] = {
    "shapes-unet": (
        *(Promise("memory", 52), Promise("memory", 60)),
        *(Promise("latency", 54), Promise("latency", 57), Promise("latency", 63)),
    ),
    "shapes-dit": (
        *(Promise("memory", 50), Promise("memory", 63)),
        *(Promise("latency", 50), Promise("latency", 58)),
        Promise("memory", 50, learned=True),
    ),
}
"""By model: a little more than shipped recipes of about the same bytes, or time, have."""


@dataclass(frozen=True, slots=True)
class Row:
    """A shipped artifact, or a promise to be tuned for."""

    model: str
    profile: str
    promise: Promise | None = None

    @property
    def name(self) -> str:
        """Unique among all rows; also a file's name."""
        return f"{self.model}-{self.profile}"


def rows() -> list[Row]:
    """Tuned ones first: they take longest."""
    found = [Row(model, promise.profile, promise) for model, promises in PROMISES.items() for promise in promises]
    for model in PROMISES:
        folder = ZOO / "artifacts" / model
        found += [Row(model, path.name) for path in sorted(folder.iterdir()) if (path / MANIFEST).is_file()]
    return found


def run() -> None:
    """Make and measure every row that is not there yet, then write the tables."""
    quiet()
    kept, opened = Kept(WORK), functools.cache(open_model)

    def work(row: Row, progress: calibrate.Progress) -> None:
        _work(kept, opened(row.model), row, progress)

    each_row(kept, rows(), lambda row: row.name, lambda row: row.model, work)
    for model in PROMISES:
        _take_times(kept, opened(model), model)
    report(kept)


def report(kept: Kept) -> None:
    """Writes the tables from the rows that are there."""
    times = {model: kept.read(_times(model)) or {"cores": "-", "of_float": {}} for model in PROMISES}
    found = [
        one | {"time": times[row.model]["of_float"].get(row.profile)}
        for row in rows()
        if (one := kept.read(row.name)) is not None
    ]
    counts = {"prompts": PROMPTS, "measured": MEASURED, "checked": CHECKED, "held_out": HELD_OUT}
    cores = {model: taken["cores"] for model, taken in times.items()}
    facts = {**counts, "learned_on": LEARNED_ON, "rounds": ROUNDS, "cores": cores, "machine": describe()}
    tune_report.write(facts, len(rows()), found)


def _work(kept: Kept, model: Model, row: Row, progress: calibrate.Progress) -> None:
    place = _place(row) if row.promise is None else _tuned(model, row.profile, row.promise, progress)
    cache = WORK / "cache"
    measured, _ = compared(place, model.components, model.truth, PROMPTS, cache, progress, timing=False)
    told: Found = {"model": row.model, "profile": row.profile, "tuned": row.promise is not None}
    if row.promise is not None:
        story = Story.model_validate_json((place / STORY).read_bytes())
        told |= {"objective": row.promise.objective, "promise_db": row.promise.min_psnr_db}
        told |= {"learned": row.promise.learned, "recipes_built": len(story.rounds)}
    plan = read_manifest(place).guidance
    kept.write(row.name, {**told, **measured, "saving": None if plan is None else plan.saving})


def _place(row: Row) -> Path:
    root = ZOO / "artifacts" if row.promise is None else WORK / "artifacts"
    return root / row.model / row.profile


def _times(model: str) -> str:
    return f"{model}-times"


def _take_times(kept: Kept, model: Model, name: str) -> None:
    """A picture's time by every profile, as a share of float's, all in turn in one run."""
    mine = [row for row in rows() if row.model == name and kept.read(row.name) is not None]
    if {row.profile for row in mine} == set((kept.read(_times(name)) or {"of_float": {}})["of_float"]):
        return
    components, means = model.components, Means(WORK / "cache")
    profiles = {row.profile: load_profile(card_of(_place(row)), components, means) for row in mine}
    every: dict[str, Denoiser] = {FLOAT: model.truth.denoiser, **profiles}
    defaults = model_defaults(components.folder)
    seconds = timed(components, every, timed_prompts(world_of(defaults)), defaults, rounds=ROUNDS)
    of_float = {profile: seconds[profile] / seconds[FLOAT] for profile in profiles}
    kept.write(_times(name), {"cores": len(os.sched_getaffinity(0)), "of_float": of_float})


def _tuned(model: Model, profile: str, promise: Promise, progress: calibrate.Progress) -> Path:
    """The artifact of a promise, searched if it is not there."""
    folder, defaults = model.components.folder, model_defaults(model.components.folder)
    out = WORK / "artifacts" / folder.name / profile
    if not (out / MANIFEST).is_file():
        others = world_of(defaults).asked(PROMPTS + CHECKED + HELD_OUT)[PROMPTS:]
        subjects = calibration_prompts(MEASURED + LEARNED_ON)
        order = TuneOrder(
            folder=folder,
            out=out,
            model=folder.name,
            objective=promise.objective,
            min_psnr_db=promise.min_psnr_db,
            subjects=subjects[:MEASURED],
            checked=_prompts(others[:CHECKED]),
            held_out=_prompts(others[CHECKED:]),
            defaults=defaults,
            work=WORK / "searches" / folder.name,
            means=Means(WORK / "cache"),
            checker=checker_of({one.prompt: one for one in others}),
            learned_on=subjects[MEASURED:] if promise.learned else (),
        )
        tune_folder(order, progress)
    return out


def _prompts(chosen: list[Asked]) -> list[str]:
    return [one.prompt for one in chosen]
