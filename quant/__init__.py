"""Quantizes denoisers: `calibrate_for`, `quantize_`, `save`, `open_backend`. Knows torch only, no pipelines.

rotation = rotate_(module, run, recipe)              # in place; the module computes the same, and rounds better
statistics = calibrate_for(module, run, recipe)      # run(answer) has every call of a typical run answered
made = quantize_(module, recipe, statistics)         # in place; made.report names every layer
save(folder, module, made, recipe, ...)              # manifest.json + safetensors
executable = open_backend("openvino", folder, manifest, empty, options)
answer = executable.run(call)                        # a Call: tensors by name, clock of each row, roles of arguments
"""

from __future__ import annotations

from quant.artifact import load_fallback, load_into, save
from quant.backends.call import Call, Executable, call_module
from quant.backends.choose import BACKENDS, Options, feature_source, open_backend
from quant.backends.disk import CACHE_BYTES
from quant.backends.moment import run_timed, timed
from quant.backends.room import Grow, without_bound
from quant.calibrate import Statistics, calibrate
from quant.check import check_recipe
from quant.clock import COND, UNCOND, UNKNOWN, Moment, StepClock
from quant.errors import ArtifactError, BackendError, CalibrationError, QuantError, RecipeError
from quant.finer import Finer, make_finer
from quant.hashes import Hashes, sha256_of
from quant.manifest import MANIFEST, Manifest, read_manifest, set_fidelity, verify
from quant.metrics import relative_error, relative_errors
from quant.precision import PreciseSteps
from quant.prepare import calibrate_for, reconstruction_key
from quant.quantize import Quantization, Work, quantize_
from quant.recipe import Recipe, builtin_recipes, load_recipe
from quant.report import LayerReport, Report
from quant.rotation.report import RotationReport
from quant.rotation.rotate import rotate_, rotates
from quant.stages import Stages
from quant.temporal.discover import TemporalLeaf, discover, examine
from quant.temporal.features import FeatureSource, TemporalPlan
from quant.temporal.measure import features_of

__all__ = [
    "BACKENDS",
    "CACHE_BYTES",
    "COND",
    "MANIFEST",
    "UNCOND",
    "UNKNOWN",
    "ArtifactError",
    "BackendError",
    "CalibrationError",
    "Call",
    "Executable",
    "FeatureSource",
    "Finer",
    "Grow",
    "Hashes",
    "LayerReport",
    "Manifest",
    "Moment",
    "Options",
    "PreciseSteps",
    "QuantError",
    "Quantization",
    "Recipe",
    "RecipeError",
    "Report",
    "RotationReport",
    "Stages",
    "Statistics",
    "StepClock",
    "TemporalLeaf",
    "TemporalPlan",
    "Work",
    "builtin_recipes",
    "calibrate",
    "calibrate_for",
    "call_module",
    "check_recipe",
    "discover",
    "examine",
    "feature_source",
    "features_of",
    "load_fallback",
    "load_into",
    "load_recipe",
    "make_finer",
    "open_backend",
    "quantize_",
    "read_manifest",
    "reconstruction_key",
    "relative_error",
    "relative_errors",
    "rotate_",
    "rotates",
    "run_timed",
    "save",
    "set_fidelity",
    "sha256_of",
    "timed",
    "verify",
    "without_bound",
]
