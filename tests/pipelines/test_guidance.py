"""Plans made of tiny models: within their budget, better than fixed rules, and honest about what they cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import quant
from jobs.profile import Defaults
from pipelines import guidance
from pipelines.calibrate import runner
from pipelines.denoiser import TorchDenoiser
from pipelines.drawing import draw_batch
from pipelines.families import UnsupportedModel
from pipelines.guidance import make_plan
from pipelines.load import Components, load_components, load_denoiser
from pipelines.tiny import save_tiny
from quant.guidance.plan import GuidancePlan
from quant.recipe_parts import Guidance
from tests.pipelines.one_by_one import save_cogview

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=12, guidance_scale=4.0)
PROMPTS = ["a red box", "b", "two blue", "a big cat", "x y z", "green"]
UNSEEN = ["cold", "a small red", "q", "long day"]


class Model:
    """A tiny model with what its denoiser draws in full."""

    def __init__(self, folder: Path) -> None:
        self.components: Components = load_components(folder)
        self.denoiser = load_denoiser(self.components)

    def plan(self, **recipe: Any) -> GuidancePlan:
        parts = Guidance.model_validate({"method": "plan", "budget": 0.05, "share_attention": False} | recipe)
        return make_plan(self.components, self.denoiser, PROMPTS, DEFAULTS, parts, batch=4)

    def error(self, plan: GuidancePlan, defaults: Defaults = DEFAULTS) -> float:
        """Of the final latents of other pictures."""

        def latents(own: GuidancePlan | None) -> Tensor:
            denoiser = TorchDenoiser("x", self.denoiser, own)
            return draw_batch(self.components, denoiser, UNSEEN, [91, 92, 93, 94], defaults).latents[-1]

        return float(quant.relative_errors(latents(plan), latents(None)).mean())


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    root, known = tmp_path_factory.mktemp("guidance"), dict[str, Model]()

    def model(family: str) -> Model:
        if family not in known:
            folder = root / family
            known[family] = Model(save_cogview(folder) if family == "cogview4" else save_tiny(family, folder))
        return known[family]

    return model


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-xl", "pixart-sigma", "cogview4"])
def test_a_plan_keeps_its_budget_on_pictures_that_it_does_not_know(
    family: str, model_of: Callable[[str], Model]
) -> None:
    """DDIM, Euler, a multistep solver and flow matching; branches together and one by one."""
    model = model_of(family)
    plan = model.plan()
    assert plan.measured_error is not None and plan.measured_error <= 0.05
    assert plan.predicted_error is not None and plan.predicted_error > 0
    assert model.error(plan) <= 2 * 0.05
    skipped = sum(not step.runs for step in plan.steps)
    assert skipped >= 3
    assert plan.saving == pytest.approx(skipped / 24, abs=0.02), "half of a step each"
    assert plan.guidance == (2.0, 5.0) and plan.calibrated_guidance == 4.0
    assert len(plan.timesteps) == len(plan.steps) == 12
    assert plan.steps[-1].deviation == pytest.approx(plan.measured_error, abs=1e-4)


def test_a_plan_is_better_than_fixed_rules_that_save_as_much(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    plan = model.plan(budget=0.02)
    count = sum(step.runs for step in plan.steps)
    even = {round(number * 12 / count) for number in range(count)}
    for rule in ("B" * count + "R" * (12 - count), "".join("B" if step in even else "R" for step in range(12))):
        given = model.plan(method="given", steps=rule)
        assert given.letters == rule and given.predicted_error is None
        assert model.error(plan) < 0.7 * model.error(given), rule


def test_a_smaller_budget_saves_less(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    small, large = model.plan(budget=0.001), model.plan(budget=0.2)
    assert small.saving < large.saving
    assert small.measured_error is not None and small.measured_error <= 0.001


def test_where_nothing_fits_the_budget_everything_runs(model_of: Callable[[str], Model]) -> None:
    plan = model_of("stable-diffusion").plan(budget=1e-12)
    assert plan.letters == "B" * 12 and plan.saving == 0 and plan.measured_error == 0


def test_the_same_order_gives_the_same_plan(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    assert model.plan() == model.plan()


def test_attention_is_shared_with_what_is_left_of_the_budget(
    model_of: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.sharing.WORTH", 1e-6)
    model = model_of("stable-diffusion")
    alone, shared = model.plan(budget=0.03), model.plan(budget=0.03, share_attention=True)
    assert [step.runs for step in alone.steps] == [step.runs for step in shared.steps]
    assert "S" in shared.letters and shared.saving > alone.saving
    assert shared.measured_error is not None and shared.measured_error <= 0.03
    assert {name for names in shared.patterns for name in names} <= {
        name for name, _ in model.denoiser.named_modules() if "attn" in name
    }
    monkeypatch.setattr("pipelines.sharing.WORTH", 1.0)
    assert model.plan(budget=0.03, share_attention=True) == alone, "compiled graphs must be worth it"


def test_attention_maps_shared_at_every_step_for_comparison(model_of: Callable[[str], Model]) -> None:
    plan = model_of("pixart-sigma").plan(method="maps", blocks=("transformer_blocks.1.attn1",))
    assert plan.maps and plan.letters == "S" * 12 and plan.patterns == ((), ("transformer_blocks.1.attn1",))
    assert 0 < plan.saving < 0.1 and plan.measured_error is not None and plan.measured_error > 0


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ({"method": "given", "steps": "BRB"}, "3 letters for a schedule of 12 steps"),
        ({"method": "given", "steps": "NRBBBBBBBBBB"}, "before any step ran both branches"),
        ({"method": "maps", "blocks": ("nothing.*",)}, "matches 'nothing"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    recipe: dict[str, Any], fault: str, model_of: Callable[[str], Model]
) -> None:
    with pytest.raises(quant.QuantError, match=fault):
        model_of("stable-diffusion").plan(**recipe)


def test_a_model_without_guidance_is_refused(model_of: Callable[[str], Model]) -> None:
    flux = model_of("flux")
    with pytest.raises(UnsupportedModel, match="runs one branch alone"):
        flux.plan()


def test_numbers_gone_wrong_are_told(model_of: Callable[[str], Model], tmp_path: Path) -> None:
    broken = Model(save_tiny("stable-diffusion", tmp_path / "broken"))
    next(broken.denoiser.parameters()).data.fill_(float("nan"))
    with pytest.raises(quant.CalibrationError, match="NaN"):
        broken.plan()


def test_branches_that_never_differ_are_told(tmp_path: Path) -> None:
    deaf = Model(save_tiny("stable-diffusion", tmp_path / "deaf"))
    for name, parameter in deaf.denoiser.named_parameters():
        if ".attn2.to_v" in name:
            parameter.data.zero_()
    with pytest.raises(quant.CalibrationError, match="guidance changes nothing"):
        deaf.plan()


def test_few_pictures_are_fitted_on_and_checked_by_alike() -> None:
    few = guidance.divided(["a", "b"], 3)
    assert few[0] is few[1] and few[0].first == 3
    fitted, checked = guidance.divided([str(number) for number in range(64)], 10)
    assert (len(fitted.subjects), len(checked.subjects)) == (24, 16)
    assert (fitted.first, checked.first) == (10, 34) and not {*fitted.subjects} & {*checked.subjects}
    fitted, checked = guidance.divided(list(PROMPTS), 0)
    assert (len(fitted.subjects), len(checked.subjects)) == (4, 2)


def test_calibration_runs_by_a_plan_where_it_is_told_to(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    plan = model.plan()
    rows: list[int] = []

    def answer(call: quant.Call) -> Tensor:
        rows.append(call.count)
        with torch.no_grad():
            return quant.call_module(model.denoiser, call)

    runner(model.components, PROMPTS[:2], DEFAULTS, plan=plan)(answer)
    assert rows == [4 if step.runs else 2 for step in plan.steps]


def test_another_guidance_in_its_range_costs_about_as_much(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    plan = model.plan()
    for scale in plan.guidance:
        assert model.error(plan, DEFAULTS.model_copy(update={"guidance_scale": scale})) < 3 * 0.05
