"""`python -m bench tfmq`: what each way of keeping temporal features is worth, on shapes-unet, against rivals.

Every row is built and measured by itself and kept under build/tfmq/, so that a stopped run goes on where it was. Rows
share calibration statistics and reconstructed weights where their recipes agree; build seconds count both in full.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor

import quant
from bench import tfmq_report
from bench.machine import describe
from bench.tfmq_rows import Row, rows
from pipelines.calibrate import runner
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.features import temporal_features
from pipelines.load import Components, load_components, load_denoiser, quiet
from pipelines.quantized import denoiser_sha256, halftone_version, load_quantized
from zoo.build import MODEL, ZOO, Means, calibration_prompts, card_of, measure, model_defaults, tasks

WORK = Path("build/tfmq")
ITERATIONS = 150
TEMPORAL_ITERATIONS = 500
PROMPTS = 256
CALIBRATION_PROMPTS = 32


def run() -> None:
    """Build and measure every row that is not there yet, then write the tables."""
    quiet()
    folder = ZOO / "models" / MODEL
    components = load_components(folder)
    truth = Remembered(TorchDenoiser("float", load_denoiser(components)))
    all_rows = rows(ITERATIONS, TEMPORAL_ITERATIONS)
    statistics: dict[str, tuple[quant.Statistics, float]] = {}
    with Progress() as bar:
        line = bar.add_task("rows", total=len(all_rows))
        for row in all_rows:
            bar.update(line, description=row.name)
            if not _result(row).is_file():
                for other in [group for group in statistics if group != row.group]:
                    del statistics[other]
                _keep(row, _measured(row, components, truth, statistics))
            bar.advance(line)
    float_row = json.loads(_float_file().read_text(encoding="utf-8"))
    found = [json.loads(_result(row).read_text(encoding="utf-8")) for row in all_rows]
    facts = {
        "iterations": ITERATIONS,
        "temporal_iterations": TEMPORAL_ITERATIONS,
        "prompts": PROMPTS,
        "calibration_prompts": CALIBRATION_PROMPTS,
        "machine": describe(),
    }
    tfmq_report.write(facts, float_row, found)


def _measured(
    row: Row, components: Components, truth: Remembered, statistics: dict[str, tuple[quant.Statistics, float]]
) -> dict[str, Any]:
    artifact = WORK / "artifacts" / row.name
    if not (artifact / quant.MANIFEST).is_file():
        _build(row, components, artifact, statistics)
    card = card_of(artifact)
    denoisers: dict[str, Denoiser] = {"float": truth, row.name: load_quantized(card, components, Means(WORK / "cache"))}
    defaults = model_defaults(components.folder)
    features = temporal_features(components, [card], tasks(2)[0].prompt, defaults)
    found = {one.profile: one for one in measure(components, denoisers, PROMPTS, features)}
    manifest = quant.read_manifest(artifact)
    _float_file().write_text(json.dumps(_numbers(found["float"].as_json())), encoding="utf-8")
    told = {"method": row.method, "bits": row.bits, "seed": row.seed, "scope": row.scope}
    sizes = {"bytes": manifest.weights_bytes, "fallback_bytes": manifest.fallback_bytes}
    return {**told, **sizes, "build_seconds": manifest.build_seconds, **_numbers(found[row.name].as_json())}


def _numbers(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "each"}


def _build(
    row: Row, components: Components, artifact: Path, statistics: dict[str, tuple[quant.Statistics, float]]
) -> None:
    started = time.monotonic()
    denoiser = load_denoiser(components)
    if row.group not in statistics:
        run_it = runner(
            components,
            calibration_prompts(CALIBRATION_PROMPTS),
            model_defaults(components.folder),
            seed=1000 * row.seed,
        )
        found = quant.calibrate_for(denoiser, run_it, _calibrating(row.recipe), seed=row.seed)
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
        calibration={"prompts": CALIBRATION_PROMPTS, "seed": row.seed},
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


class Remembered:
    """The float denoiser, which computes nothing twice: all rows are compared with the same pictures."""

    backend = "torch"
    fallbacks = 0

    def __init__(self, denoiser: TorchDenoiser) -> None:
        self._denoiser = denoiser
        self._answers: dict[bytes, Tensor] = {}
        self.name = denoiser.name
        self.weights_bytes = denoiser.weights_bytes

    def run(self, call: DenoiserCall) -> Tensor:
        """The float denoiser's output."""
        key = hashlib.blake2b(b"".join(_bytes_of(call))).digest()
        if key not in self._answers:
            self._answers[key] = self._denoiser.run(call)
        return self._answers[key].clone()


def _bytes_of(call: DenoiserCall) -> Iterator[bytes]:
    for tensor in (call.sample, call.timestep, *call.inputs.values()):
        yield tensor.contiguous().numpy().tobytes()


def _result(row: Row) -> Path:
    return WORK / "rows" / f"{row.name}.json"


def _float_file() -> Path:
    return WORK / "float.json"


def _keep(row: Row, found: dict[str, Any]) -> None:
    file = _result(row)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(file)
