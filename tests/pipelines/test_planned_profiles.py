"""Guidance plans in artifacts: made while quantizing, stored, opened with the profile, taken up by a later build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quant
from jobs.manifest import Manifest
from jobs.profile import Defaults
from pipelines.denoiser import TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.families import UnsupportedModel
from pipelines.features import temporal_features
from pipelines.guidance import make_plan
from pipelines.load import Components, load_components, load_denoiser
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.quantized import QuantizedDenoiser, load_profile
from pipelines.tiny import save_tiny
from quant.guidance.plan import GuidancePlan
from quant.recipe_parts import Guidance

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=8, guidance_scale=4.0)
PROMPTS = ["a red box", "b", "two blue", "a big cat", "x y z"]
PLAN = Guidance(method="plan", budget=0.05)


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load_components(save_tiny("stable-diffusion", tmp_path_factory.mktemp("planned") / "sd"))


def order(components: Components, out: Path, recipe: quant.Recipe, **changes: Any) -> QuantizationOrder:
    fields = {"folder": components.folder, "out": out, "recipe": recipe, "subjects": PROMPTS, "defaults": DEFAULTS}
    return QuantizationOrder(**{**fields, "model": "sd", **changes})


def test_a_plan_for_the_float_model_is_an_artifact_without_tensors(components: Components, tmp_path: Path) -> None:
    recipe = quant.load_recipe("float-cfg").model_copy(update={"guidance": PLAN})
    manifest = Manifest.read(quantize_folder(order(components, tmp_path / "float-cfg", recipe)))
    card = manifest.card(tmp_path / "float-cfg")
    assert [file.name for file in (tmp_path / "float-cfg").iterdir()] == ["manifest.json"]
    assert card.backend == "torch" and card.guidance is not None and card.guidance.saving > 0.1
    denoiser = load_profile(card, components, quant.Options(tmp_path))
    assert isinstance(denoiser, TorchDenoiser) and denoiser.name == "float-cfg"
    assert denoiser.guidance is not None and denoiser.guidance.letters == card.guidance.steps
    assert denoiser.weights_bytes == card.weights_bytes == manifest.float_weights_bytes
    full = draw_batch(components, TorchDenoiser("float", load_denoiser(components)), ["a"], [7], DEFAULTS)
    planned = draw_batch(components, denoiser, ["a"], [7], DEFAULTS)
    assert 0 < quant.relative_error(planned.latents[-1], full.latents[-1]) < 0.15
    features = temporal_features(components, [card], "a", DEFAULTS)
    assert all(torch.equal(features["float"][name], own) for name, own in features["float-cfg"].items())


def test_a_quantized_profile_runs_by_its_plan(components: Components, tmp_path: Path) -> None:
    recipe = quant.load_recipe("w8a8").model_copy(update={"name": "w8a8-cfg", "guidance": PLAN})
    manifest = Manifest.read(quantize_folder(order(components, tmp_path / "w8a8-cfg", recipe)))
    denoiser = load_profile(manifest.card(tmp_path / "w8a8-cfg"), components, quant.Options(tmp_path / "cache"))
    assert isinstance(denoiser, QuantizedDenoiser) and denoiser.guidance is not None
    rows: list[int] = []
    run = denoiser.executable.run

    def counted(call: quant.Call) -> torch.Tensor:
        rows.append(call.count)
        return run(call)

    denoiser.executable.run = counted  # type: ignore[method-assign]
    full = draw_batch(components, TorchDenoiser("float", load_denoiser(components)), ["a"], [7], DEFAULTS)
    planned = draw_batch(components, denoiser, ["a"], [7], DEFAULTS)
    assert rows == [2 if step.runs else 1 for step in denoiser.guidance.steps] and 1 in rows
    assert quant.relative_error(planned.latents[-1], full.latents[-1]) < 0.2
    denoiser.close()


def test_a_killed_build_goes_on_with_its_plan(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quant.load_recipe("w8a8").model_copy(update={"name": "w8a8-cfg", "guidance": PLAN})
    wanted = order(components, tmp_path / "w8a8-cfg", recipe, scratch=tmp_path / "stages")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quant, "calibrate_for", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(wanted)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.order.make_plan", killed)
        manifest = quant.read_manifest(quantize_folder(wanted).parent)
        other = recipe.model_copy(update={"guidance": Guidance(method="plan", budget=0.04)})
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(order(components, tmp_path / "w8a8-cfg", other, scratch=tmp_path / "stages"))
    assert manifest.guidance is not None and manifest.guidance.measured_error is not None


def test_profiles_of_one_model_share_a_plan(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, alone = tmp_path / "plans", quant.load_recipe("float-cfg").model_copy(update={"guidance": PLAN})
    first = quant.read_manifest(quantize_folder(order(components, tmp_path / "a", alone, plans=plans)).parent)
    made: list[int] = []
    make = make_plan

    def counted(*given: Any, **told: Any) -> GuidancePlan:
        made.append(1)
        return make(*given, **told)

    monkeypatch.setattr("pipelines.order.make_plan", counted)
    recipe = quant.load_recipe("w8a8").model_copy(update={"name": "w8a8-cfg", "guidance": PLAN})
    second = quant.read_manifest(quantize_folder(order(components, tmp_path / "b", recipe, plans=plans)).parent)
    assert not made and second.guidance == first.guidance
    quantize_folder(order(components, tmp_path / "c", recipe, plans=plans, seed=1))
    assert made == [1], "other pictures, another plan"


def test_what_has_no_guidance_or_nothing_to_do_is_refused(components: Components, tmp_path: Path) -> None:
    recipe = quant.load_recipe("float-cfg").model_copy(update={"guidance": PLAN})
    alone = DEFAULTS.model_copy(update={"guidance_scale": 1.0})
    with pytest.raises(UnsupportedModel, match="at guidance 1 the pipeline runs one branch alone"):
        quantize_folder(order(components, tmp_path / "a", recipe, defaults=alone))
    nothing = recipe.model_copy(update={"guidance": Guidance()})
    with pytest.raises(quant.RecipeError, match="neither quantizes anything nor plans guidance"):
        quantize_folder(order(components, tmp_path / "a", nothing))
    assert not (tmp_path / "a").exists()
