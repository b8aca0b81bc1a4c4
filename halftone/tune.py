"""`halftone tune`: a model's recipe searched under a promise; the subjects that it is measured, checked and held to.

Knows no server. Importing it imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from halftone.build import Chosen, Found, Progress, choose_subjects, find_model, library_faults
from halftone.profile_plot import plot_search
from halftone.views import ProfileView
from jobs.errors import InvalidRequest
from jobs.manifest import Manifest
from jobs.pareto import places
from jobs.profile import AUTO, FLOAT
from jobs.request import ProfileName
from pipelines.families import Subject
from pipelines.load import quiet
from pipelines.tune import STORY, tune_folder
from pipelines.tune_order import Story, TuneOrder
from quant.tuning.costs import Objective
from workers.settings import WorkerSettings
from zoo.worlds import checker_of

MEASURED, CHECKED, HELD_OUT = 16, 24, 64
"""Of the model's own subjects: to find a recipe by, to draw every recipe on, and to hold the result to."""

LEAST_LINES = 6
"""Of a file of prompts: half to find by, a quarter to check on, a quarter to hold the result to."""

LEAST_DB, MOST_DB = 10.0, 100.0
"""Promises that make sense: below, pictures have nothing in common; above, 8-bit pictures are the same."""

FRONTIER = "frontier.png"


@dataclass(frozen=True)
class Made:
    """What tuning gave: the artifact's folder, the profile, how it was found, and the picture of that."""

    folder: Path
    card: ProfileView
    story: Story
    picture: Path


def tune_model(
    model: str,
    min_psnr_db: float,
    objective: Objective,
    name: str | None,
    prompts: Sequence[str] | None,
    progress: Progress,
    *,
    samples: int | None = None,
    learn: int = 0,
    seed: int = 0,
) -> Made:
    """Finds the cheapest recipe whose pictures of held-out subjects keep the promise, and makes it a profile.

    Args:
        model: a folder, an id, or a repository.
        min_psnr_db: mean PSNR to float.
        objective: what is to be least.
        name: of the profile; by default tells objective and promise.
        prompts: to measure, check and hold to, in this order; by default the model's own.
        progress: told what is being done.
        samples: subjects to measure on, at most.
        learn: further subjects, for weights to learn their rounding on; 0 rounds them to nearest.
        seed: of pictures that are drawn.

    Raises:
        HalftoneError: the model, the promise, the name or the prompts are at fault, or no recipe keeps the promise.
    """
    _check_promise(min_psnr_db)
    quiet()
    settings = WorkerSettings.load()
    found = find_model(model, settings, progress)
    profile = name or f"tuned-{objective}-{min_psnr_db:g}"
    _check_name(profile, found)
    measured, checked, held = _subjects(found, prompts, samples)
    folder = settings.artifacts_dir / found.card.id
    order = TuneOrder(
        folder=found.folder,
        out=folder / profile,
        model=found.card.id,
        objective=objective,
        min_psnr_db=min_psnr_db,
        subjects=measured,
        checked=checked.subjects,
        held_out=held.subjects,
        defaults=found.card.defaults,
        work=folder / ".tuning",
        means=settings,
        seed=seed,
        checker=checker_of(checked.asked | held.asked) if held.asked else None,
        learned_on=_more(found, prompts, len(measured), learn) if learn else (),
    )
    with library_faults():
        made = tune_folder(order, progress)
    card = ProfileView.model_validate(Manifest.read(made.manifest).card(order.out).model_dump())
    picture = order.out / FRONTIER
    others = [one for one in found.card.profiles if one.name != profile]
    plot_search(picture, found.card.id, made.story, places([*others, card]), card.name)
    return Made(order.out, card, made.story, picture)


def _check_promise(min_psnr_db: float) -> None:
    if not (math.isfinite(min_psnr_db) and LEAST_DB <= min_psnr_db <= MOST_DB):
        told = f"a promise is a PSNR of {LEAST_DB:g} to {MOST_DB:g} dB, not {min_psnr_db:g}"
        raise InvalidRequest(told, param="min_psnr")


def _check_name(name: str, found: Found) -> None:
    try:
        TypeAdapter(ProfileName).validate_python(name)
    except ValidationError as fault:
        raise InvalidRequest(f"{name!r} is no profile's name: {fault.errors()[0]['msg']}", param="name") from fault
    if name == AUTO:
        raise InvalidRequest(f"no profile may be named {AUTO!r}, which asks for one to be chosen", param="name")
    taken = found.card.profile(name)
    if name == FLOAT or (taken is not None and not (taken.artifact and (taken.artifact / STORY).is_file())):
        told = f"model {found.card.id!r} has a profile {name!r} already, which tuning did not make: give another --name"
        raise InvalidRequest(told, param="name")


def _more(found: Found, prompts: Sequence[str] | None, measured: int, learn: int) -> list[Subject]:
    """Subjects to learn on: those that come after the ones that are measured on."""
    if prompts is None:
        return choose_subjects(found, None, measured + learn, 1, unseen=False).subjects[measured:]
    lines = list(dict.fromkeys(prompts))
    first = lines[: len(lines) // 2][measured:]
    if len(first) < learn:
        told = f"of {len(lines)} prompts, half are measured and learned on: {measured} and {len(first)}, not {learn}; "
        raise InvalidRequest(told + "give more prompts, or learn on fewer", param="learn")
    return choose_subjects(found, first[:learn], None, 1, unseen=False).subjects


def _subjects(found: Found, prompts: Sequence[str] | None, samples: int | None) -> tuple[list[Subject], Chosen, Chosen]:
    """Subjects to measure on, to check on, and to hold the result to: no two of them the same where prompts differ."""
    if prompts is not None:
        lines = list(dict.fromkeys(prompts))
        if len(lines) < LEAST_LINES:
            told = f"tuning takes at least {LEAST_LINES} different prompts, half of them held out, not {len(lines)}"
            raise InvalidRequest(told, param="prompts")
        first, second = len(lines) // 2, len(lines) - len(lines) // 4
        cuts = (lines[:first][: samples or MEASURED], lines[first:second][:CHECKED], lines[second:][:HELD_OUT])
        measured, checked, held = (choose_subjects(found, own, None, 1, unseen=False) for own in cuts)
        return measured.subjects, checked, held
    measured = choose_subjects(found, None, samples, MEASURED, unseen=False)
    whole = choose_subjects(found, None, CHECKED + HELD_OUT, 1, unseen=True)
    checked, held = (Chosen(part, whole.asked) for part in (whole.subjects[:CHECKED], whole.subjects[CHECKED:]))
    return measured.subjects, checked, held
