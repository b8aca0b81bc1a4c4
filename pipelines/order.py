"""Makes an artifact of a model folder, as an order says: drawn, calibrated, quantized, written. Must not know how
artifacts are opened, nor jobs' lives, queues or HTTP.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quant
from jobs.profile import Defaults
from pipelines.calibrate import Answer, Progress, runner, silent
from pipelines.families import Subject
from pipelines.guidance import make_plan
from pipelines.load import Components, load_components, load_denoiser
from pipelines.quantized import denoiser_sha256
from quant.guidance.alone import save_plan
from quant.guidance.plan import GuidancePlan

_Run = Callable[[Answer], None]


@dataclass(frozen=True)
class QuantizationOrder:
    """What to quantize a model's denoiser by, and into what.

    Attributes:
        folder: the model, in diffusers layout.
        out: the artifact's folder.
        recipe: how.
        subjects: what is drawn to calibrate on: prompts, classes, or None for models that are told nothing.
        defaults: at which settings.
        model: the model's id; by default the folder's name.
        observed: how many of the subjects guidance plans are made from at most, and, where rounding is learned, ranges
            and rotations: the first ones, as they settle after a few. All others give rows to learn on, which would
            fit to those few.
        seed: of calibration pictures and of reconstruction.
        scratch: where finished stages are kept, so that a killed build goes on; by default beside `out` until it is
            done. Orders that differ in what becomes of weights must not share one.
        plans: where guidance plans are kept, by default with the stages. Orders for one model may share it, whatever
            becomes of weights.
    """

    folder: Path
    out: Path
    recipe: quant.Recipe
    subjects: Sequence[Subject]
    defaults: Defaults
    model: str | None = None
    observed: int = 64
    seed: int = 0
    scratch: Path | None = None
    plans: Path | None = None

    @property
    def few(self) -> Sequence[Subject]:
        """The subjects that ranges and rotations are taken from."""
        return self.subjects[: self.observed] if self.recipe.learns else self.subjects


def quantize_folder(order: QuantizationOrder, progress: Progress = silent) -> Path:
    """Calibrates and quantizes a model folder's denoiser, writes the artifact, and returns its manifest's path.

    The same order gives the same bytes of tensors. Whatever lay at `out` is replaced, once all is done; until then
    finished stages lie in `scratch`, and are taken up by the next call of the same order.

    Raises:
        UnsupportedModel: the folder cannot be loaded.
        RecipeError: the recipe does not fit the model; told before any work, but for its guidance.
        QuantError: a layer's weights or inputs are not finite.
        ValueError: there is no subject.
    """
    started = time.monotonic()
    progress("reading", 0, 1)
    components = load_components(order.folder)
    steps = order.defaults.num_inference_steps
    notes = quant.check_recipe(order.recipe, components.skeleton, inference_steps=steps)
    denoiser = load_denoiser(components)
    sha256 = denoiser_sha256(order.folder, components.denoiser_part)
    stages = quant.Stages(order.scratch or scratch_of(order.out), _key(order, sha256))
    about: Any = {
        "model": order.model or order.folder.resolve().name,
        "model_sha256": sha256,
        "calibration": _calibration(order),
        "version": halftone_version(),
    }
    plans = quant.Stages(order.plans, _plan_key(order, sha256)) if order.plans else stages
    plan = _planned(order, components, denoiser, plans, progress)
    if order.recipe.scope == "none":
        if plan is None:
            raise quant.RecipeError(f"recipe {order.recipe.name} neither quantizes anything nor plans guidance")
        seconds = time.monotonic() - started + plans.resumed_seconds
        save_plan(order.out, denoiser, plan, order.recipe, **about, build_seconds=seconds)
    else:
        run, more = _runs(order, components, progress)
        rotation = quant.rotate_(denoiser, run, order.recipe, seed=order.seed) if quant.rotates(order.recipe) else None
        statistics = quant.calibrate_for(denoiser, run, order.recipe, more=more, seed=order.seed)
        work = quant.Work(stages, order.seed, progress)
        finer = quant.make_finer(denoiser, order.recipe, statistics, work)
        calibrated = time.monotonic() - started
        made = quant.quantize_(denoiser, order.recipe, statistics, work).noting(notes)
        progress("writing", 0, 1)
        seconds = calibrated + work.seconds + (plans.resumed_seconds if plans is not stages else 0.0)
        parts: Any = {"rotation": rotation, "guidance": plan, "finer": finer, "build_seconds": seconds}
        quant.save(order.out, denoiser, made, order.recipe, **about, **parts)
    if order.scratch is None:
        stages.discard()
    progress("writing", 1, 1)
    return order.out / quant.MANIFEST


def is_made_by(artifact: Path, order: QuantizationOrder) -> bool:
    """Whether there is an artifact at a folder that was made by an order like this: recipe, model, number of subjects
    and settings. Which subjects they were, artifacts do not tell.
    """
    if not (artifact / quant.MANIFEST).is_file():
        return False
    manifest = quant.read_manifest(artifact)
    part = load_components(order.folder).denoiser_part
    return (
        quant.Recipe.model_validate(manifest.recipe) == order.recipe
        and manifest.model_sha256 == denoiser_sha256(order.folder, part)
        and manifest.calibration == _calibration(order)
    )


def _calibration(order: QuantizationOrder) -> dict[str, Any]:
    """What a manifest says of it."""
    told = {"prompts": len(order.subjects), "observed": len(order.few), "seed": order.seed}
    return told | order.defaults.model_dump(mode="json")


def _runs(order: QuantizationOrder, components: Components, progress: Progress) -> tuple[_Run, _Run | None]:
    """What draws the subjects that are observed, and what draws those that are only learned on."""
    few, rest = order.few, order.subjects[len(order.few) :]
    run = runner(components, few, order.defaults, seed=order.seed, progress=progress)
    if not rest:
        return run, None
    told, seed = "drawing more to learn on", order.seed + len(few)
    return run, runner(components, rest, order.defaults, seed=seed, progress=progress, told=told)


def _planned(
    order: QuantizationOrder, components: Components, denoiser: nn.Module, stages: quant.Stages, progress: Progress
) -> GuidancePlan | None:
    """What the recipe leaves out of guidance, by the float model; as a stage that a later build may take up."""
    guidance = order.recipe.guidance
    if guidance.method == "none":
        return None
    started, name = time.monotonic(), f"guidance-{hashlib.sha256(repr(guidance).encode()).hexdigest()[:16]}"
    kept = stages.load(name)
    if kept is not None:
        return GuidancePlan.model_validate_json(bytes(kept["plan"].tolist()))
    few = order.subjects[: order.observed]
    plan = make_plan(components, denoiser, few, order.defaults, guidance, seed=order.seed, progress=progress)
    text = torch.tensor(list(plan.model_dump_json().encode()), dtype=torch.uint8)
    stages.save(name, {"plan": text}, time.monotonic() - started)
    return plan


def scratch_of(out: Path) -> Path:
    """Where the stages of an unfinished artifact lie."""
    return out.with_name(f".{out.name}-stages")


def _key(order: QuantizationOrder, sha256: str) -> str:
    """Equal for two orders exactly when the stages of one may be used by the other."""
    weights, subjects = quant.reconstruction_key(order.recipe), list(order.subjects)
    told = (weights, sha256, subjects, order.observed, order.defaults.model_dump_json(), order.seed)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _plan_key(order: QuantizationOrder, sha256: str) -> str:
    """Equal for two orders exactly when the guidance plans of one may be used by the other."""
    told = (sha256, list(order.subjects[: order.observed]), order.defaults.model_dump_json(), order.seed)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def halftone_version() -> str:
    """The installed version of this product, or `0` where it runs uninstalled."""
    try:
        return metadata.version("halftone")
    except metadata.PackageNotFoundError:
        return "0"
