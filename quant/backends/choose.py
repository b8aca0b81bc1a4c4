"""Names of backends to what opens them. Imports a backend only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from quant.artifact import PRECISE, load_fallback, load_into
from quant.backends.call import Executable
from quant.backends.disk import CACHE_BYTES
from quant.backends.moment import TimedExecutable
from quant.backends.room import Grow, without_bound
from quant.backends.stepwise import StepwiseExecutable
from quant.errors import BackendError
from quant.guidance.share import NO_SHARING, Patterns
from quant.manifest import Manifest, read_manifest
from quant.precision import PreciseSteps
from quant.temporal.features import FeatureSource
from quant.temporal.program import TemporalProgram

BACKENDS = ("openvino", "reference")
"""The backends that run artifacts on any machine."""

GPU_BACKENDS = ("cuda",)
"""Those that run artifacts where their device is."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a backend may use.

    Attributes:
        cache_dir: where compiled code may be kept between processes.
        cache_bytes: what that may take on disk; the least recently used goes.
        threads: CPU threads of one call; 0 leaves it to the backend.
        gpu_dtype: what everything that is not quantized is computed in, on a GPU.
        gpu_products: what 8-bit linears run in there: int8 as calibrated, fp8, or the faster of both.
        gpu_fuses: whether kernels there take in what stands around products; see `quant.backends.cuda_waiting`.
        grow: asked before an executable takes memory for one more compiled copy of its weights.
    """

    cache_dir: Path
    cache_bytes: int = CACHE_BYTES
    threads: int = 0
    gpu_dtype: torch.dtype = torch.float32
    gpu_products: Literal["int8", "fp8", "measured"] = "int8"
    gpu_fuses: bool = True
    grow: Grow = without_bound


def open_backend(
    name: str,
    artifact: Path,
    manifest: Manifest,
    empty: Callable[[], nn.Module],
    options: Options,
    whole: Callable[[], nn.Module] | None = None,
) -> Executable:
    """An executable of an artifact (already verified); `empty()` builds the float module with meta parameters, and
    `whole()` with its weights, which artifacts need whose precise steps run by them.

    Raises:
        BackendError: no such backend; or precise steps run by float weights, and `whole` is not given.
        ArtifactError: the artifact does not fit the module.
    """
    if manifest.precision is not None:
        return _stepwise(name, artifact, manifest, manifest.precision, empty, options, whole)
    return _of_one(name, artifact, manifest, empty, options)


def _of_one(
    name: str, artifact: Path, manifest: Manifest, empty: Callable[[], nn.Module], options: Options
) -> Executable:
    """An executable of one copy of the weights."""

    def module() -> nn.Module:
        return load_into(empty(), artifact, manifest)

    executable = _open(name, module, manifest, options)
    if manifest.temporal is None:
        return executable
    return TimedExecutable(executable, feature_source(artifact, manifest, empty), manifest.temporal.width)


def _stepwise(
    name: str,
    artifact: Path,
    manifest: Manifest,
    steps: PreciseSteps,
    empty: Callable[[], nn.Module],
    options: Options,
    whole: Callable[[], nn.Module] | None,
) -> Executable:
    """One of two copies. Both ask for room with what the other holds counted."""
    opened: list[Executable] = []

    def beside(other: int) -> Options:
        def grow(held: int, more: int, take: Callable[[], None]) -> bool:
            return options.grow(held + opened[other].weights_bytes, more, take)

        return replace(options, grow=grow)

    opened.append(_of_one(name, artifact, manifest, empty, beside(1)))
    if steps.form == "w8a8":
        folder = artifact / PRECISE
        opened.append(_of_one(name, folder, read_manifest(folder), empty, beside(0)))
    elif whole is None:
        raise BackendError(f"{artifact} runs some steps by the float model, whose weights are not at hand")
    else:
        opened.append(_open(name, whole, _of_float(manifest), beside(0)))
    return StepwiseExecutable(opened[0], opened[1], steps)


def _of_float(manifest: Manifest) -> Manifest:
    """What would be the manifest of the float model: equal for all artifacts of one."""
    layers = tuple(layer.model_copy(update={"bytes_after": layer.bytes_before}) for layer in manifest.layers)
    nothing: dict[str, object] = {"forms": {}, "transforms": {}, "temporal": None, "fallback": (), "recipe": {}}
    files = {"float": manifest.model_sha256}
    return manifest.model_copy(update={**nothing, "layers": layers, "files": files, "float_in": "float32"})


def feature_source(artifact: Path, manifest: Manifest, empty: Callable[[], nn.Module]) -> FeatureSource:
    """What knows the moment of a call of an artifact that has per-time tables."""
    plan = manifest.temporal
    if plan is None:
        raise BackendError(f"{artifact} holds nothing that depends on time")

    def program() -> TemporalProgram:
        return TemporalProgram(load_fallback(empty(), artifact, manifest), plan.leaves)

    return FeatureSource(plan, program if manifest.fallback else None)


def _open(name: str, module: Callable[[], nn.Module], manifest: Manifest, options: Options) -> Executable:
    plan = manifest.guidance
    patterns = NO_SHARING if plan is None else Patterns(plan.patterns, plan.maps)
    if name == "reference":
        from quant.backends.reference import ReferenceExecutable

        return ReferenceExecutable(module(), patterns)
    if name == "openvino":
        from quant.backends.openvino import OpenVinoExecutable

        return OpenVinoExecutable(
            module,
            manifest,
            options.cache_dir,
            cache_bytes=options.cache_bytes,
            threads=options.threads,
            patterns=patterns,
            grow=options.grow,
        )
    if name == "cuda":
        return _cuda(module, options, patterns)
    raise BackendError(f"no backend {name!r}; known: {', '.join(BACKENDS + GPU_BACKENDS)}")


def _cuda(module: Callable[[], nn.Module], options: Options, patterns: Patterns) -> Executable:
    try:
        from quant.backends.cuda import CudaExecutable
    except ModuleNotFoundError as error:
        raise BackendError(f"the cuda backend needs Triton, which torch's builds for CUDA bring: {error}") from error
    return CudaExecutable(
        module,
        options.cache_dir,
        dtype=options.gpu_dtype,
        products=options.gpu_products,
        patterns=patterns,
        fuses=options.gpu_fuses,
    )
