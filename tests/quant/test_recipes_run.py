"""Built-in recipes on tiny models, from the float module to the backend that the recipe says, without iterations."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from torch import Tensor

import quant
from pipelines.tiny_denoisers import tiny_denoiser
from quant.backends.call import call_module
from tests.quant.in_time import on_meta, run_in_time

RECIPES = (
    "smoothquant-w8a8",
    "smoothquant-w4a8",
    "vidit-q-like",
    "rotation-only",
    "ranges-only",
    "trdq-w8a8",
    "trdq-w4a4",
)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", ["pixart-sigma", "sd15"])
def test_a_recipe_runs_to_the_end(family: str, name: str, tmp_path: Path) -> None:
    recipe = quant.load_recipe(name).fast()
    module, call = tiny_denoiser(family, rows=4)
    quant.check_recipe(recipe, module)
    run, quantized = run_in_time(call), copy.deepcopy(module)
    rotation = quant.rotate_(quantized, run, recipe)
    made = quant.quantize_(quantized, recipe, quant.calibrate_for(quantized, run, recipe))
    manifest = quant.save(
        tmp_path / "made",
        quantized,
        made,
        recipe,
        model="x",
        model_sha256="a" * 64,
        calibration={},
        version="0",
        rotation=rotation,
    )
    assert manifest.backend == recipe.backend
    options = quant.Options(tmp_path / "cache", threads=1)
    executable = quant.open_backend(manifest.backend, tmp_path / "made", manifest, lambda: on_meta(module), options)
    bound = 0.1 if "w8" in name else 0.6 if name == "trdq-w4a4" else 0.4
    errors: list[float] = []

    def compare(one: quant.Call) -> Tensor:
        expected = call_module(module, one)
        errors.extend(quant.relative_errors(executable.run(one), expected).tolist())
        return expected

    run(compare)
    assert len(errors) == 24 and max(errors) < bound
