"""An evaluation as files: JSON, Markdown and PNG plots, all of one run or none. Knows no model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

from torch import Tensor

from halftone.evaluation import Evaluation
from halftone.plots import Picture, plot_guidance, plot_samples, plot_selection, plot_temporal, plot_trajectory
from jobs.errors import InvalidRequest
from jobs.profile import FLOAT
from pipelines.families import Subject
from quant.temporal.select import CHOICES, picture_rows

REPORT, PAGE = "evaluation.json", "evaluation.md"
TRAJECTORY, TEMPORAL, SAMPLES, SELECTION = "trajectory.png", "temporal.png", "samples.png", "selection.png"
GUIDANCE = "guidance.png"

ABOUT = {
    TRAJECTORY: "How far the latents are from float's after each step, relative to their size; mean over pictures.",
    TEMPORAL: "Outputs of modules that depend on time: cosine with float's, and how many are nearer to another step's.",
    SAMPLES: "The first pictures, a row for each profile; of videos the frame in the middle.",
    SELECTION: "What each module's temporal feature comes from at each step: a table, by its storage, or its layers.",
    GUIDANCE: "What each step of a guidance plan runs, and how far the latents are from full guidance after it, "
    "relative to their size; measured when the plan was made.",
}
LETTERS = {
    "B": "both branches",
    "S": "both, sharing attention",
    "R": "conditional, kept differences reused",
    "N": "conditional, no guidance",
}
MEANINGS = (
    "PSNR, SSIM and MS-SSIM (as many of its five scales as fit the size): pictures against float's of the same seed, "
    "before encoding; means, of PSNR over the pictures that are not identical with float's. Trajectory: relative L2 "
    "distance of the latents from float's, mean over all steps. Temporal cosine: the worst over modules and steps. "
    "Mismatch: share of temporal features that are most similar to float's of another step. Fréchet: squared "
    "Fréchet distance from the shapes world's own pictures, by 48 features of shapes-unet's autoencoder; not "
    "comparable with the usual FID. Seconds: for one picture drawn in a batch, median."
)


def require_writable(folder: Path) -> None:
    """Finds out before the work whether a folder can take the files.

    Raises:
        InvalidRequest: it is no folder, or may not be written.
    """
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise InvalidRequest(f"{nearest} is no folder; --out takes one to write", param="out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidRequest(f"{nearest} may not be written", param="out")


def write_files(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes all files of an evaluation, replacing those of an earlier one; what else lies in the folder stays.

    They are written aside first, so that a fault on the way leaves the earlier ones whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(mkdtemp(prefix=".evaluation-", dir=folder))
    try:
        plots = _plot(evaluation, staging)
        report = json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        (staging / REPORT).write_text(report + "\n", encoding="utf-8")
        (staging / PAGE).write_text(page(evaluation, plots), encoding="utf-8")
        written = [REPORT, PAGE, *plots]
        for name in written:
            (staging / name).replace(folder / name)
        for name in {*ABOUT}.difference(plots):
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / name for name in written]


def page(evaluation: Evaluation, plots: Sequence[str]) -> str:
    """The Markdown page: settings, table, plots, what the columns mean."""
    at = evaluation.defaults
    columns, rows = evaluation.table()
    guidance = f", guidance {at.guidance_scale:g}" if at.guidance_scale != 1 else ""
    lines = [
        f"# {evaluation.model}: profiles against float",
        "",
        f"{evaluation.pipeline}, {len(evaluation.subjects)} pictures of {at.width}x{at.height}, "
        f"{at.num_inference_steps} steps{guidance}, seeds from {evaluation.seed}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(line for note in evaluation.notes for line in (note, "")),
    ]
    for name in plots:
        lines += [ABOUT[name], "", f"![{Path(name).stem}]({name})", ""]
    return "\n".join([*lines, MEANINGS, ""])


def caption(subject: Subject, seed: int) -> str:
    """What stands over a column of pictures."""
    if isinstance(subject, str):
        return subject
    return f"seed {seed}" if subject is None else f"class {subject}, seed {seed}"


def _plot(evaluation: Evaluation, folder: Path) -> list[str]:
    """Draws what there is to draw; the names of the files."""
    others = [one for one in evaluation.found if one.profile != FLOAT]
    plots = []
    if others:
        plot_trajectory(folder / TRAJECTORY, {one.profile: one.trajectory for one in others})
        plots.append(TRAJECTORY)
    if told := [one for one in others if one.temporal_cosine_worst is not None]:
        plot_temporal(
            folder / TEMPORAL,
            {one.profile: one.temporal_cosine_worst_by_step for one in told},
            {one.profile: one.temporal_cosine_mean_by_step for one in told},
            {one.profile: one.mismatch_by_step for one in told},
        )
        plots.append(TEMPORAL)
    rows = {name: [_levels(picture) for picture in pictures] for name, pictures in evaluation.shown.items()}
    subjects = evaluation.subjects[: max(map(len, rows.values()), default=0)]
    if subjects:
        captions = [caption(subject, evaluation.seed + i) for i, subject in enumerate(subjects)]
        plot_samples(folder / SAMPLES, rows, captions)
        plots.append(SAMPLES)
    if evaluation.selections:
        rows_of = {name: picture_rows(one) for name, one in evaluation.selections.items()}
        plot_selection(folder / SELECTION, rows_of, CHOICES)
        plots.append(SELECTION)
    if evaluation.plans:
        plans = {name: (plan.steps, plan.deviations) for name, plan in evaluation.plans.items()}
        plot_guidance(folder / GUIDANCE, plans, LETTERS)
        plots.append(GUIDANCE)
    return plots


def _levels(picture: Tensor) -> Picture:
    """[C, H, W] float in 0..1 as [H, W, 3] uint8; one channel is gray."""
    colour = picture.expand(3, -1, -1) if picture.shape[0] == 1 else picture
    levels: Picture = (colour.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return levels
