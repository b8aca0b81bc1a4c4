"""Between the quantization library and pipelines: artifacts opened as denoisers, and model folders made into artifacts.

The only file that knows both. Must not know jobs' lives, queues or HTTP.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

import quant
from jobs.profile import Defaults, ProfileCard
from pipelines.calibrate import Progress, runner, silent
from pipelines.denoiser import Denoiser, DenoiserCall, TorchDenoiser
from pipelines.families import Subject, UnsupportedModel
from pipelines.guidance import make_plan
from pipelines.library_call import library_calls, plain
from pipelines.load import Components, load_components, load_denoiser
from quant.guidance.alone import save_plan
from quant.guidance.plan import GuidancePlan


class Means(Protocol):
    """What a backend may use; every `WorkerSettings` and `quant.Options` has both."""

    @property
    def cache_dir(self) -> Path:
        """Where compiled code may be kept."""

    @property
    def threads(self) -> int:
        """CPU threads; 0 leaves it to the backend."""


class QuantizedDenoiser:
    """An artifact that runs: the `Denoiser` of a quantized profile."""

    def __init__(
        self,
        name: str,
        backend: str,
        kind: type[nn.Module],
        executable: quant.Executable,
        guidance: GuidancePlan | None = None,
    ) -> None:
        self.name = name
        self.backend = backend
        self.guidance = guidance
        self.executable = executable
        self._kind = kind

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take in memory now."""
        return self.executable.weights_bytes

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table knew."""
        return self.executable.fallbacks

    def run(self, call: DenoiserCall) -> Tensor:
        """The denoiser's output [B, ...] on the call's device, in the sample's dtype.

        Raises:
            UnsupportedModel: the backend cannot run this denoiser.
        """
        try:
            output = torch.cat([self.executable.run(plain(part)) for part in library_calls(self._kind, call)])
        except quant.BackendError as error:
            raise UnsupportedModel(str(error)) from error
        return output.to(call.sample)

    def close(self) -> None:
        """Lets go of weights and compiled code."""
        self.executable.close()


def load_profile(card: ProfileCard, components: Components, means: Means) -> Denoiser:
    """Opens a profile's artifact: what was quantized; or, where that is a guidance plan alone, the float model with it.

    Raises:
        UnsupportedModel: as `load_quantized`.
    """
    if card.backend != "torch":
        return load_quantized(card, components, means)
    with _told(card):
        _, manifest = _verified(card, components)
    return TorchDenoiser(card.name, load_denoiser(components), manifest.guidance)


def load_quantized(
    card: ProfileCard, components: Components, means: Means, *, backend: str | None = None
) -> QuantizedDenoiser:
    """Opens a profile's artifact by its backend, or by `backend`. The float weights are hashed, never loaded.

    Raises:
        UnsupportedModel: the artifact is missing, incomplete, changed, or of another model, or the backend is unknown.
    """
    kind, name = type(components.skeleton), backend or card.backend
    options = quant.Options(cache_dir=means.cache_dir, threads=means.threads)
    with _told(card):
        folder, manifest = _verified(card, components)
        executable = quant.open_backend(name, folder, manifest, lambda: empty_denoiser(components), options)
    return QuantizedDenoiser(card.name, name, kind, executable, manifest.guidance)


def open_reference(card: ProfileCard, components: Components) -> tuple[nn.Module, quant.FeatureSource | None]:
    """A profile's artifact as a torch module, and what knows the moment of its calls where time matters to it.

    Raises:
        UnsupportedModel: the artifact is missing, incomplete, changed, or of another model.
    """
    with _told(card):
        folder, manifest = _verified(card, components)
        if manifest.backend == "torch":
            return load_denoiser(components), None
        module = quant.load_into(empty_denoiser(components), folder, manifest)
        if manifest.temporal is None:
            return module, None
        return module, quant.feature_source(folder, manifest, lambda: empty_denoiser(components))


def _verified(card: ProfileCard, components: Components) -> tuple[Path, quant.Manifest]:
    if card.artifact is None:
        raise UnsupportedModel(f"profile {card.name} of {card.model} has no artifact")
    manifest = quant.read_manifest(card.artifact)
    quant.verify(card.artifact, manifest, denoiser_sha256(components.folder, components.denoiser_part))
    return card.artifact, manifest


@contextmanager
def _told(card: ProfileCard) -> Iterator[None]:
    """The library's faults, as faults of the profile."""
    try:
        yield
    except quant.QuantError as error:
        raise UnsupportedModel(f"profile {card.name} of {card.model}: {error}") from error


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
    seed: int = 0
    scratch: Path | None = None
    plans: Path | None = None


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
    notes = quant.check_recipe(order.recipe, components.skeleton)
    denoiser = load_denoiser(components)
    sha256 = denoiser_sha256(order.folder, components.denoiser_part)
    stages = quant.Stages(order.scratch or scratch_of(order.out), _key(order, sha256))
    about: Any = {
        "model": order.model or order.folder.resolve().name,
        "model_sha256": sha256,
        "calibration": {"prompts": len(order.subjects), "seed": order.seed, **order.defaults.model_dump(mode="json")},
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
        run = runner(components, order.subjects, order.defaults, seed=order.seed, progress=progress)
        rotation = quant.rotate_(denoiser, run, order.recipe, seed=order.seed) if quant.rotates(order.recipe) else None
        statistics = quant.calibrate_for(denoiser, run, order.recipe, seed=order.seed)
        calibrated = time.monotonic() - started
        work = quant.Work(stages, order.seed, progress)
        made = quant.quantize_(denoiser, order.recipe, statistics, work).noting(notes)
        progress("writing", 0, 1)
        seconds = calibrated + work.seconds + (plans.resumed_seconds if plans is not stages else 0.0)
        parts: Any = {"rotation": rotation, "guidance": plan, "build_seconds": seconds}
        quant.save(order.out, denoiser, made, order.recipe, **about, **parts)
    if order.scratch is None:
        stages.discard()
    progress("writing", 1, 1)
    return order.out / quant.MANIFEST


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
    plan = make_plan(components, denoiser, order.subjects, order.defaults, guidance, seed=order.seed, progress=progress)
    text = torch.tensor(list(plan.model_dump_json().encode()), dtype=torch.uint8)
    stages.save(name, {"plan": text}, time.monotonic() - started)
    return plan


def scratch_of(out: Path) -> Path:
    """Where the stages of an unfinished artifact lie."""
    return out.with_name(f".{out.name}-stages")


def _key(order: QuantizationOrder, sha256: str) -> str:
    """Equal for two orders exactly when the stages of one may be used by the other."""
    weights, subjects = quant.reconstruction_key(order.recipe), list(order.subjects)
    told = (weights, sha256, subjects, order.defaults.model_dump_json(), order.seed)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _plan_key(order: QuantizationOrder, sha256: str) -> str:
    """Equal for two orders exactly when the guidance plans of one may be used by the other."""
    told = (sha256, list(order.subjects), order.defaults.model_dump_json(), order.seed)
    return hashlib.sha256(repr(told).encode()).hexdigest()


def denoiser_sha256(folder: Path, part: str) -> str:
    """Hash of a float denoiser's config and weights files: what an artifact belongs to.

    Raises:
        ArtifactError: there are none.
    """
    return quant.sha256_of([folder / part / "config.json", *sorted((folder / part).glob("*.safetensors"))])


def empty_denoiser(components: Components) -> nn.Module:
    """The denoiser with its parameters on the meta device and its constant buffers real."""
    kind = type(components.skeleton)
    with init_empty_weights(include_buffers=False):
        module: nn.Module = kind.from_config(components.skeleton.config)  # type: ignore[attr-defined]
    return module.eval().requires_grad_(False)


def halftone_version() -> str:
    """The installed version of this product, or `0` where it runs uninstalled."""
    try:
        return metadata.version("halftone")
    except metadata.PackageNotFoundError:
        return "0"
