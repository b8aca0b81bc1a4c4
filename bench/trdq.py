"""`python -m bench trdq`: what rotation, time ranges and guidance plans are worth, on both built-in models.

Every row is built and measured by itself and kept under build/trdq/, so that a stopped run goes on where it was.
Several runs at once share the rows.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from bench import trdq_report
from bench.machine import describe
from bench.table import Found, Kept, compared, each_row
from bench.trdq_rows import MODELS, Row, rows
from pipelines import calibrate
from pipelines.load import Components, quiet
from pipelines.order import QuantizationOrder, quantize_folder
from quant import MANIFEST, read_manifest, reconstruction_key
from zoo.build import Model, calibration_prompts, model_defaults, open_model

WORK = Path("build/trdq")
ITERATIONS = 150
PROMPTS = 64
CALIBRATION_PROMPTS = 256
OBSERVED_PROMPTS = 32


def run() -> None:
    """Build and measure every row that is not there yet, then write the tables."""
    quiet()
    kept, opened = Kept(WORK), functools.cache(open_model)

    def work(row: Row, progress: calibrate.Progress) -> None:
        _work(kept, opened(row.model), row, progress)

    each_row(kept, rows(ITERATIONS), lambda row: row.name, _stages, work)
    report(kept)


def report(kept: Kept) -> None:
    """Writes the tables from the rows that are there."""
    found = [one for row in rows(ITERATIONS) if (one := kept.read(row.name)) is not None]
    truths = {model: kept.read(f"{model}-float") or {} for model in MODELS}
    facts = {
        "iterations": ITERATIONS,
        "prompts": PROMPTS,
        "calibration_prompts": CALIBRATION_PROMPTS,
        "observed_prompts": OBSERVED_PROMPTS,
        "rows": len(rows(ITERATIONS)),
        "machine": describe(),
    }
    trdq_report.write(facts, truths, found)


def _work(kept: Kept, model: Model, row: Row, progress: calibrate.Progress) -> None:
    artifact = WORK / "artifacts" / row.model / row.recipe.name
    if not (artifact / MANIFEST).is_file():
        _build(row, model.components, artifact, progress)
    measured, of_float = compared(
        artifact, model.components, model.truth, PROMPTS, WORK / "cache", progress, timing=row.seed == 0
    )
    told: Found = {"model": row.model, "method": row.method, "bits": row.bits, "seed": row.seed}
    kept.write(f"{row.model}-float", of_float)
    kept.write(row.name, {**told, **_of_manifest(artifact), **measured})


def _build(row: Row, components: Components, artifact: Path, progress: calibrate.Progress) -> None:
    order = QuantizationOrder(
        components.folder,
        artifact,
        row.recipe,
        calibration_prompts(CALIBRATION_PROMPTS if row.recipe.learns else OBSERVED_PROMPTS),
        model_defaults(components.folder),
        row.model,
        observed=OBSERVED_PROMPTS,
        seed=1000 * row.seed,
        scratch=WORK / "stages" / _stages(row),
        plans=WORK / "plans" / f"{row.model}-{row.seed}",
    )
    quantize_folder(order, progress)


def _stages(row: Row) -> str:
    """Equal for rows whose reconstructed weights are the same."""
    return hashlib.sha256(f"{reconstruction_key(row.recipe)} {row.model} {row.seed}".encode()).hexdigest()[:24]


def _of_manifest(artifact: Path) -> Found:
    manifest = read_manifest(artifact)
    plan, rotation = manifest.guidance, manifest.rotation
    return {
        "outliers_before": None if rotation is None else rotation.outliers_before,
        "outliers_after": None if rotation is None else rotation.outliers_after,
        "saving": None if plan is None else plan.saving,
    }
