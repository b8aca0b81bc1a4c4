"""Quantizes denoisers: `calibrate`, `quantize_`, `save`, then `open_backend`. Knows torch only: no pipelines, no queue.

statistics = calibrate(module, run)            # run(module) feeds it whatever is typical
report = quantize_(module, recipe, statistics) # in place; the report names every layer
save(folder, module, report, recipe, ...)      # manifest.json + safetensors
executable = open_backend("openvino", folder, manifest, empty, options)
"""

from __future__ import annotations

from quant.artifact import MANIFEST, Manifest, load_into, read_manifest, save, set_fidelity, sha256_of, verify
from quant.backends.call import Call, Executable
from quant.backends.choose import BACKENDS, Options, open_backend
from quant.calibrate import Statistics, calibrate
from quant.clock import StepClock
from quant.errors import ArtifactError, BackendError, CalibrationError, QuantError, RecipeError
from quant.metrics import relative_error, relative_errors
from quant.quantize import quantize_
from quant.recipe import Recipe, builtin_recipes, load_recipe
from quant.report import LayerReport, Report

__all__ = [
    "BACKENDS",
    "MANIFEST",
    "ArtifactError",
    "BackendError",
    "CalibrationError",
    "Call",
    "Executable",
    "LayerReport",
    "Manifest",
    "Options",
    "QuantError",
    "Recipe",
    "RecipeError",
    "Report",
    "Statistics",
    "StepClock",
    "builtin_recipes",
    "calibrate",
    "load_into",
    "load_recipe",
    "open_backend",
    "quantize_",
    "read_manifest",
    "relative_error",
    "relative_errors",
    "save",
    "set_fidelity",
    "sha256_of",
    "verify",
]
