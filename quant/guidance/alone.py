"""Artifacts of a guidance plan alone: nothing is quantized, the float model's own weights run. Knows no pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from quant.guidance.plan import GuidancePlan
from quant.manifest import Manifest, write_manifest
from quant.recipe import FLOAT_BITS, Recipe
from quant.replacing import replacing

FLOAT_BYTES = 4


def save_plan(
    folder: Path,
    module: nn.Module,
    plan: GuidancePlan,
    recipe: Recipe,
    *,
    model: str,
    model_sha256: str,
    calibration: dict[str, Any],
    version: str,
    build_seconds: float | None = None,
) -> Manifest:
    """Writes a plan for a float module as an artifact without tensors, replacing what was there."""
    size = FLOAT_BYTES * sum(parameter.numel() for parameter in module.parameters())
    manifest = Manifest(
        model=model,
        profile=recipe.name,
        backend="torch",
        decode_in=recipe.decode_in,
        recipe=recipe.model_dump(mode="json"),
        weight_bits=FLOAT_BITS,
        activation_bits=FLOAT_BITS,
        weights_bytes=size,
        float_weights_bytes=size,
        model_sha256=model_sha256,
        files={},
        layers=(),
        notes=("nothing is quantized: the float model runs with a guidance plan",),
        guidance=plan,
        calibration=calibration,
        build_seconds=build_seconds,
        halftone_version=version,
    )
    with replacing(folder) as partial:
        write_manifest(partial, manifest)
    return manifest
