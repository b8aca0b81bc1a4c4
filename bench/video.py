"""`python -m bench video`: what profiles of a video model are like beside float and beside a rival's step.

Every row is built and measured by itself and kept under build/video/, so that a stopped run goes on where it was.
Several runs at once share the rows. Then calls are timed beside rivals', each in a process of its own.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from bench import video_report
from bench.cpu_cells import Size, cell_name, packages
from bench.cpu_heats import run_heat
from bench.machine import describe
from bench.rivals import rival
from bench.subjects import subject
from bench.table import Found, Kept, compared, each_row
from bench.video_films import Judged, alone
from bench.video_rows import Row, rows
from pipelines import calibrate
from pipelines.load import quiet
from pipelines.order import QuantizationOrder, is_made_by, quantize_folder
from pipelines.quantized import load_profile
from quant import read_manifest, reconstruction_key
from zoo.build import CALIBRATION_PROMPTS, LEARNING_PROMPTS, ZOO, Means, Model, card_of, model_defaults, open_folder
from zoo.worlds import world_of

WORK: Final = Path("build/video")
SHIPPED: Final = ZOO / "artifacts"
MODEL: Final = "shapes-video"
BESIDE: Final = Size(
    subjects=(MODEL, "video-5x16"),
    rivals=(
        *("torch-fp32", "openvino-bf16", "openvino-nncf-int8", "openvino-nncf-int8-f32"),
        *("tfmq-w8a8", "trdq-w8a8"),
    ),
    root=WORK / "beside",
)
"""What is timed beside rivals: the model's calls, and those of a transformer of Wan 2.1's width, two of its blocks."""


@dataclass(frozen=True, slots=True)
class Video:
    """How much is measured.

    Attributes:
        folder: of the video model.
        prompts: unseen ones that every row films.
        calibration_prompts: that rounding is learned on; the first `observed` of them give ranges and plans.
        iterations: of learned rounding; None: as recipes say.
        beside: what is timed beside rivals, and by whom, once all rows are there.
        work: where all that is made and measured is kept.
    """

    folder: Path = ZOO / "models" / MODEL
    prompts: int = 200
    calibration_prompts: int = LEARNING_PROMPTS
    observed: int = CALIBRATION_PROMPTS
    iterations: int | None = None
    beside: Size = BESIDE
    work: Path = WORK


def run(size: Video | None = None) -> None:
    """Build and measure every row that is not there yet, time calls beside rivals, then write the tables."""
    quiet()
    size = size or Video()
    kept, opened = Kept(size.work), functools.cache(open_folder)

    def work(row: Row, progress: calibrate.Progress) -> None:
        _work(kept, size, opened(size.folder), row, progress)

    each_row(kept, rows(size.iterations), lambda row: row.name, _stages, work)
    beside = [_beside(name, kept, size.beside) for name in size.beside.subjects]
    found = [one for row in rows(size.iterations) if (one := kept.read(row.name)) is not None]
    facts = {
        "model": size.folder.name,
        "prompts": size.prompts,
        "calibration_prompts": size.calibration_prompts,
        "observed_prompts": size.observed,
        "defaults": model_defaults(size.folder).model_dump(),
        "threads": size.beside.cores,
        "rounds": size.beside.rounds,
        "machine": describe(),
        "packages": packages(),
    }
    video_report.write(facts, kept.read("float") or {}, found, beside)


def _work(kept: Kept, size: Video, model: Model, row: Row, progress: calibrate.Progress) -> None:
    artifact = _artifact(row, size, progress)
    components, defaults = model.components, model_defaults(size.folder)
    judged = Judged(world_of(defaults).asked(size.prompts))
    cache = size.work / "cache"
    measured, of_float = compared(
        artifact, components, model.truth, size.prompts, cache, progress, timing=False, on_picture=judged.see
    )
    card, manifest = card_of(artifact), read_manifest(artifact)
    profile = load_profile(card, components, Means(cache))
    seconds = alone(components, {"float": model.truth.denoiser, card.name: profile}, judged.asked[0].prompt, defaults)
    told: Found = {"method": row.method, "bits": list(row.bits), "seconds": seconds[card.name]}
    told |= {"float_seconds": seconds["float"], "saving": manifest.guidance and manifest.guidance.saving}
    kept.write("float", {**of_float, **judged.told("float"), "bytes": manifest.float_weights_bytes})
    kept.write(row.name, {**measured, **judged.told(card.name), **told})


def _artifact(row: Row, size: Video, progress: calibrate.Progress) -> Path:
    """The row's artifact: the shipped one if the row would make it again, else one that is made unless it is there."""
    order = _order(row, size)
    shipped = SHIPPED / size.folder.name / row.name
    if is_made_by(shipped, order):
        return shipped
    if not is_made_by(order.out, order):
        quantize_folder(order, progress)
    return order.out


def _order(row: Row, size: Video) -> QuantizationOrder:
    defaults = model_defaults(size.folder)
    count = size.calibration_prompts if row.recipe.learns else size.observed
    return QuantizationOrder(
        size.folder,
        size.work / "artifacts" / row.name,
        row.recipe,
        world_of(defaults).captions(count, 1),
        defaults,
        size.folder.name,
        observed=size.observed,
        scratch=size.work / "stages" / _stages(row),
        plans=size.work / "plans",
    )


def _stages(row: Row) -> str:
    """Equal for rows whose reconstructed weights are the same."""
    return hashlib.sha256(reconstruction_key(row.recipe).encode()).hexdigest()[:24]


def _beside(name: str, kept: Kept, size: Size) -> Found:
    """A call of a subject by every rival that is installed, in one run; why the others are not."""
    size = replace(size, root=size.root.resolve(), pictures=0)
    reasons = {one: why for one in size.rivals if (why := rival(one).why_not()) is not None}
    heat: Sequence[str] = [one for one in size.rivals if one not in reasons]
    cell = cell_name("video", name, heat, asdict(size), packages())
    done = kept.read(cell)
    if done is None:
        about = subject(name, size.root)
        about.prepare()
        done = run_heat(about, heat, size, kept)
        kept.write(cell, done)
    return {"subject": name, **done, "absent": reasons}
