"""Names of backends to what opens them. Imports a backend only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from quant.artifact import load_fallback, load_into
from quant.backends.call import Executable
from quant.backends.disk import CACHE_BYTES
from quant.backends.moment import TimedExecutable
from quant.backends.room import Grow, without_bound
from quant.errors import BackendError
from quant.guidance.share import NO_SHARING, Patterns
from quant.manifest import Manifest
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
        grow: asked before an executable takes memory for one more compiled copy of its weights.
    """

    cache_dir: Path
    cache_bytes: int = CACHE_BYTES
    threads: int = 0
    gpu_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    gpu_products: Literal["int8", "fp8", "measured"] = "int8"
    grow: Grow = without_bound


def open_backend(
    name: str, artifact: Path, manifest: Manifest, empty: Callable[[], nn.Module], options: Options
) -> Executable:
    """An executable of an artifact (already verified); `empty()` builds the float module with meta parameters.

    Raises:
        BackendError: no such backend.
        ArtifactError: the artifact does not fit the module.
    """

    def module() -> nn.Module:
        return load_into(empty(), artifact, manifest)

    executable = _open(name, module, manifest, options)
    if manifest.temporal is None:
        return executable
    return TimedExecutable(executable, feature_source(artifact, manifest, empty), manifest.temporal.width)


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
    dtype: torch.dtype = getattr(torch, options.gpu_dtype)
    return CudaExecutable(module, options.cache_dir, dtype=dtype, products=options.gpu_products, patterns=patterns)
