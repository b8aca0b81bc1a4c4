"""`python -m bench tfmq`: what each way of keeping temporal features is worth, on shapes-unet, against rivals.

Every row is built and measured by itself and kept under build/tfmq/, so that a stopped run goes on where it was. Rows
share calibration statistics and reconstructed weights where their recipes agree; build seconds count both in full.
"""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path

import quant
from bench import tfmq_report
from bench.machine import describe
from bench.table import Kept, compared, each_row
from bench.tfmq_rows import Row, rows
from pipelines import calibrate
from pipelines.beside import Remembered
from pipelines.denoiser import TorchDenoiser
from pipelines.load import Components, load_components, load_denoiser, quiet
from pipelines.order import halftone_version
from pipelines.quantized import denoiser_sha256
from zoo.build import ZOO, calibration_prompts, model_defaults

MODEL = "shapes-unet"
WORK = Path("build/tfmq")
ITERATIONS = 150
TEMPORAL_ITERATIONS = 500
PROMPTS = 256
CALIBRATION_PROMPTS = 256
OBSERVED_PROMPTS = 32

Shared = dict[str, tuple[quant.Statistics, float]]
"""Calibration statistics of the group of rows that is being made, and the seconds they took."""


def run() -> None:
    """Build and measure every row that is not there yet, then write the tables."""
    quiet()
    kept, all_rows = Kept(WORK), rows(ITERATIONS, TEMPORAL_ITERATIONS)
    components = load_components(ZOO / "models" / MODEL)
    truth = Remembered(TorchDenoiser("float", load_denoiser(components)))
    work = partial(_work, kept, components, truth, {})
    each_row(kept, all_rows, lambda row: row.name, lambda row: row.group, work)
    facts = {
        "iterations": ITERATIONS,
        "temporal_iterations": TEMPORAL_ITERATIONS,
        "prompts": PROMPTS,
        "calibration_prompts": CALIBRATION_PROMPTS,
        "observed_prompts": OBSERVED_PROMPTS,
        "machine": describe(),
    }
    found = [one for row in all_rows if (one := kept.read(row.name)) is not None]
    tfmq_report.write(facts, kept.read("float") or {}, found)


def _work(
    kept: Kept, components: Components, truth: Remembered, statistics: Shared, row: Row, progress: calibrate.Progress
) -> None:
    for other in [group for group in statistics if group != row.group]:
        del statistics[other]
    artifact = WORK / "artifacts" / row.name
    if not (artifact / quant.MANIFEST).is_file():
        _build(row, components, artifact, statistics)
    measured, of_float = compared(artifact, components, truth, PROMPTS, WORK / "cache", progress)
    told = {"method": row.method, "bits": row.bits, "seed": row.seed, "scope": row.scope}
    kept.write("float", of_float)
    kept.write(row.name, {**told, **measured})


def _build(row: Row, components: Components, artifact: Path, statistics: Shared) -> None:
    started = time.monotonic()
    denoiser = load_denoiser(components)
    if row.group not in statistics:
        prompts, seed = calibration_prompts(CALIBRATION_PROMPTS), 1000 * row.seed
        drawn = partial(calibrate.runner, components, defaults=model_defaults(components.folder))
        few = drawn(prompts[:OBSERVED_PROMPTS], seed=seed)
        more = drawn(prompts[OBSERVED_PROMPTS:], seed=seed + OBSERVED_PROMPTS)
        # it is drawn with when a row needs samples, maybe after others are quantized
        untouched = load_denoiser(components)
        found = quant.calibrate_for(untouched, few, _calibrating(row.recipe), more=more, seed=row.seed)
        statistics[row.group] = (found, time.monotonic() - started)
    seen, seconds = statistics[row.group]
    work = quant.Work(quant.Stages(WORK / "stages" / _stage_key(row), _stage_key(row)), row.seed)
    made = quant.quantize_(denoiser, row.recipe, seen, work)
    quant.save(
        artifact,
        denoiser,
        made,
        row.recipe,
        model=MODEL,
        model_sha256=denoiser_sha256(components.folder, components.denoiser_part),
        calibration={"prompts": CALIBRATION_PROMPTS, "observed": OBSERVED_PROMPTS, "seed": row.seed},
        version=halftone_version(),
        build_seconds=seconds + work.seconds,
    )


def _calibrating(recipe: quant.Recipe) -> quant.Recipe:
    """The recipe with statistics of each step and branch, which all rows of a group can use."""
    activations = recipe.activations.model_copy(update={"steps": "each", "branches": "each"})
    return recipe.model_copy(update={"activations": activations})


def _stage_key(row: Row) -> str:
    """Equal for rows whose reconstructed weights are the same."""
    return hashlib.sha256(f"{quant.reconstruction_key(row.recipe)} {row.group}".encode()).hexdigest()[:24]
