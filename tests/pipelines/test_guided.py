"""Plans served: pictures equal an independent computation by hand on plain diffusers, for both ways of calling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pipelines.batch import group_key, take_rows
from pipelines.denoiser import COND, UNCOND, UNKNOWN, DenoiserCall, TorchDenoiser
from pipelines.families import call_arguments
from pipelines.guided import OFF, GuidedCalls, at_other_precision, kinds_of_calls
from pipelines.load import load_components, load_denoiser
from pipelines.proxy import Clock
from pipelines.session import DirectSeams, Order, Session
from pipelines.tiny import save_tiny
from quant.guidance.plan import GuidancePlan, GuidanceStep
from quant.precision import PreciseSteps
from tests.pipelines.one_by_one import by_hand, save_cogview, step
from tests.pipelines.promptless import save_promptless

ONE_BY_ONE = "cogview4"
FAMILIES = ("stable-diffusion", "stable-diffusion-xl", "pixart-sigma", "stable-diffusion-3", ONE_BY_ONE)
ORDER = Order("a red box", "", 48, 32, 6, 3.0, [5, 6])
STEPS = (
    step("B"),
    step("R", 0.9),
    step("B", 1.4, -0.3),
    step("R", 0.0),
    step("R", 0.7, 0.2),
    step("B", 1.2, -0.5, 0.4),
)
CALLED = {True: [4, 2, 4, 2, 2, 4], False: [2, 2, 2, 2, 2, 2, 2, 2, 2]}
"""Rows of each denoiser call of two pictures, where both branches come in one call, and where each comes alone."""


class Rows(DirectSeams):
    """Runs directly and keeps the calls that were really run."""

    def __init__(self, denoiser: TorchDenoiser) -> None:
        super().__init__(denoiser)
        self.calls: list[DenoiserCall] = []

    def denoise(self, call: DenoiserCall) -> Tensor:
        self.calls.append(call)
        return super().denoise(call)


class Model:
    """A tiny model, and what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.components = load_components(folder)
        self.denoiser = TorchDenoiser("float", load_denoiser(self.components))

    def draw(self, plan: GuidancePlan | None, order: Order = ORDER) -> tuple[Tensor, list[DenoiserCall], str | None]:
        seams = Rows(replace_plan(self.denoiser, plan))
        session = Session(self.components, order, seams, plan)
        return session.draw(), seams.calls, session.plan_unused

    def timesteps(self, order: Order = ORDER) -> tuple[float, ...]:
        session = Session(self.components, order, DirectSeams(self.denoiser))
        session.draw()
        return tuple(float(timestep) for timestep in session.pipeline.scheduler.timesteps)


def replace_plan(denoiser: TorchDenoiser, plan: GuidancePlan | None) -> TorchDenoiser:
    denoiser.guidance = plan
    return denoiser


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    root = tmp_path_factory.mktemp("guided")
    known: dict[str, Model] = {}

    def model(family: str) -> Model:
        if family not in known:
            save = save_cogview if family == ONE_BY_ONE else lambda folder: save_tiny(family, folder)
            known[family] = Model(save(root / family))
        return known[family]

    return model


def plain_pictures(folder: Path, steps: Sequence[GuidanceStep], *, one_by_one: bool) -> Tensor:
    """What plain diffusers draws if its denoiser's unconditional output is replaced as the steps say. All rows run."""
    plain = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    part = plain.unet if getattr(plain, "unet", None) is not None else plain.transformer
    forward, calls = part.forward, [0]
    history: list[Tensor] = []
    waiting: list[Tensor] = []

    def replaced(conditional: Tensor, unconditional: Tensor, now: GuidanceStep) -> Tensor:
        if now.unconditional == "run":
            history.append(conditional - unconditional)
        total = now.gain * history[-1]
        for back, weight in enumerate(now.earlier, start=2):
            total = total + weight * history[-back]
        return conditional - total

    def patched(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        output = forward(*args, **kwargs | {"return_dict": False})[0]
        number, calls[0] = calls[0], calls[0] + 1
        if not one_by_one:
            unconditional, conditional = output.chunk(2)
            return (torch.cat([replaced(conditional, unconditional, steps[number]), conditional]),)
        if number % 2 == 0:
            waiting[:] = [output]
            return (output,)
        return (replaced(waiting[0], output, steps[number // 2]),)

    part.forward = patched
    arguments = call_arguments(
        plain, prompt=ORDER.prompt, negative_prompt="", width=48, height=32, steps=6, guidance=3.0, n=2
    )
    pictures: Tensor = plain(**arguments, generator=[torch.Generator().manual_seed(seed) for seed in ORDER.seeds])[0]
    return pictures


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_gives_what_its_algebra_says(family: str, model_of: Callable[[str], Model]) -> None:
    model = model_of(family)
    pictures, calls, unused = model.draw(by_hand(model.timesteps(), STEPS))
    expected = plain_pictures(model.folder, STEPS, one_by_one=family == ONE_BY_ONE)
    torch.testing.assert_close(pictures, expected, rtol=0, atol=2e-4)
    assert unused is None
    assert [call.rows for call in calls] == CALLED[family != ONE_BY_ONE]
    full, _, _ = model.draw(None)
    assert (pictures - full).abs().max() > 1e-3, "the plan changes something here"


def test_a_transformer_of_classes_has_the_conditional_half_first(tmp_path: Path) -> None:
    from pipelines.families import NULL_CLASSES

    assert NULL_CLASSES["DiTPipeline"] == 1000
    folder = save_promptless("dit", tmp_path / "dit")
    components = load_components(folder)
    call = DenoiserCall(
        sample=torch.randn(4, 4, 8, 8),
        timestep=torch.full((4,), 500),
        step=torch.zeros(4, dtype=torch.int64),
        total_steps=torch.full((4,), 2),
        branch=torch.tensor([COND, COND, UNCOND, UNCOND]),
        inputs={"class_labels": torch.tensor([0, 1, 3, 3])},
    )
    module = load_denoiser(components)
    denoiser = TorchDenoiser("float", module)
    clock = Clock(0, 2, (500.0, 400.0))
    guided = GuidedCalls(denoiser.run, clock, by_hand((500, 400), [step("B"), step("R", 0.5)]), 3.0)
    first = guided(call)
    clock.step = 1
    second = guided(call)
    torch.testing.assert_close(second[2:], second[:2] - 0.5 * (first[:2] - first[2:]))
    torch.testing.assert_close(second[:2], denoiser.run(take_rows(call, torch.tensor([0, 1]))))


@pytest.mark.parametrize("family", ["stable-diffusion", ONE_BY_ONE])
def test_a_plan_that_leaves_nothing_out_is_bit_equal_to_none(family: str, model_of: Callable[[str], Model]) -> None:
    model = model_of(family)
    full, _, _ = model.draw(None)
    pictures, _, unused = model.draw(by_hand(model.timesteps(), [step("B")] * 6))
    assert torch.equal(pictures, full) and unused is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 5}, "it takes 5 steps, and the plan was made for 6"),
        ({"guidance": 6.5}, "guidance 6.5 is outside of the calibrated 1.5 to 6"),
        ({"guidance": 1.0}, "guidance 1 is outside"),
    ],
)
def test_what_a_plan_does_not_fit_runs_in_full(
    changes: dict[str, Any], reason: str, model_of: Callable[[str], Model]
) -> None:
    model = model_of("stable-diffusion")
    plan, order = by_hand(model.timesteps(), STEPS), replace(ORDER, **changes)
    full, expected, _ = model.draw(None, order)
    pictures, calls, unused = model.draw(plan, order)
    assert torch.equal(pictures, full)
    assert [call.rows for call in calls] == [call.rows for call in expected]
    assert unused is not None and reason in unused


def test_a_pipeline_that_runs_one_branch_has_no_use_for_a_plan(model_of: Callable[[str], Model]) -> None:
    """Guidance 1 is in the plan's range, and the pipeline takes that for none."""
    model = model_of("stable-diffusion")
    plan = by_hand(model.timesteps(), STEPS, guidance=(0.5, 6.0))
    pictures, _, unused = model.draw(plan, replace(ORDER, guidance=1.0))
    assert unused == OFF
    assert torch.equal(pictures, model.draw(None, replace(ORDER, guidance=1.0))[0])


def test_other_guidance_in_range_and_negative_prompts_are_served(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    plan = by_hand(model.timesteps(), STEPS)
    for order in (replace(ORDER, guidance=2.0), replace(ORDER, negative_prompt="blue")):
        _, calls, unused = model.draw(plan, order)
        assert unused is None and [call.rows for call in calls] == CALLED[True]


def call_of(*branches: int) -> DenoiserCall:
    rows = len(branches)
    return DenoiserCall(
        sample=torch.arange(rows * 2.0).reshape(rows, 2),
        timestep=torch.full((rows,), 9),
        step=torch.zeros(rows, dtype=torch.int64),
        total_steps=torch.full((rows,), 2),
        branch=torch.tensor(branches),
        constants={"txt_seq_lens": list(range(rows)), "flag": True},
    )


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ([(UNCOND,), (COND,)], "unconditional branch before the conditional one"),
        ([(UNKNOWN, UNKNOWN)], "rows of neither branch"),
        ([(COND, COND, UNCOND)], "2 conditional rows go with 1"),
        ([(COND,), (COND,), (UNCOND,)], "conditional branch more than once a step"),
    ],
)
@pytest.mark.parametrize("first", ["B", "N"])
def test_what_cannot_be_served_runs_in_full_and_is_told(calls: list[tuple[int, ...]], reason: str, first: str) -> None:
    ran: list[DenoiserCall] = []

    def submit(call: DenoiserCall) -> Tensor:
        ran.append(call)
        return 2 * call.sample

    begin = step("B") if first == "B" else step("R", 0.0)
    guided = GuidedCalls(submit, Clock(0, 2, (9.0, 8.0)), by_hand((9, 8), [begin, step("R", 0.0)]), 3.0)
    for branches in calls:
        call = call_of(*branches)
        assert torch.equal(guided(call), 2 * call.sample)
    assert [tuple(call.branch.tolist()) for call in ran] == calls
    assert guided.unused is not None and reason in guided.unused


def test_reuse_without_a_kept_difference_runs_in_full() -> None:
    """A pipeline that guides from its second step on only."""
    clock = Clock(0, 2, (9.0, 8.0))
    guided = GuidedCalls(lambda call: call.sample, clock, by_hand((9, 8), [step("B"), step("R")]), 3.0)
    guided(call_of(COND))
    clock.step = 1
    assert torch.equal(guided(call_of(COND, UNCOND)), call_of(COND, UNCOND).sample)
    assert guided.unused is not None and "did not run both branches where the plan did" in guided.unused


def test_attention_is_shared_only_where_branches_come_together() -> None:
    plan = by_hand((9,), [step("B", pattern=1)], patterns=((), ("a",)))
    ran: list[int] = []

    def submit(call: DenoiserCall) -> Tensor:
        ran.append(call.pattern)
        return call.sample

    together = GuidedCalls(submit, Clock(0, 1, (9.0,)), plan, 3.0)
    together(call_of(UNCOND, COND))
    apart = GuidedCalls(submit, Clock(0, 1, (9.0,)), plan, 3.0)
    apart(call_of(COND))
    apart(call_of(UNCOND))
    assert ran == [1, 0, 0]
    assert together.unused is None
    assert apart.unused is not None and "none can share attention" in apart.unused


def test_the_float_model_shares_attention_as_its_plan_says(model_of: Callable[[str], Model]) -> None:
    model = model_of("stable-diffusion")
    names = [name for name, part in model.denoiser.module.named_modules() if name.endswith("attn2")]
    steps = [step("B"), *[step("B", pattern=1)] * 5]
    pictures, calls, unused = model.draw(by_hand(model.timesteps(), steps, patterns=((), tuple(names))))
    full, _, _ = model.draw(None)
    assert [call.pattern for call in calls] == [0, 1, 1, 1, 1, 1] and unused is None
    assert (pictures - full).abs().max() > 1e-4


def test_rows_are_taken_with_their_lists() -> None:
    taken = take_rows(call_of(COND, UNCOND, COND), torch.tensor([2, 0]))
    assert taken.constants == {"txt_seq_lens": [2, 0], "flag": True}
    assert taken.sample.tolist() == [[4, 5], [0, 1]] and taken.branch.tolist() == [COND, COND]


def test_calls_that_share_differently_do_not_run_together() -> None:
    call = call_of(COND, UNCOND)
    assert group_key(call) == group_key(replace(call, sample=-call.sample))
    assert group_key(call) != group_key(replace(call, pattern=1))


def test_what_is_compiled_ahead() -> None:
    plan = by_hand((9, 8, 7), [step("B"), step("B", pattern=1), step("R")], patterns=((), ("a",)))
    kinds = list(kinds_of_calls(call_of(UNCOND, COND), plan))
    assert [(call.branch.tolist(), call.pattern) for call in kinds] == [([COND], 0), ([UNCOND, COND], 1)]
    assert list(kinds_of_calls(call_of(UNCOND, COND), None)) == list(kinds_of_calls(call_of(COND), plan)) == []


def test_a_call_at_a_step_of_other_precision() -> None:
    steps = PreciseSteps(form="float", first_steps=1, last_steps=2, total_steps=6, weights_bytes=0)
    first = replace(call_of(UNCOND, COND), step=torch.zeros(2, dtype=torch.int64), total_steps=torch.ones(2).long())
    (other,) = at_other_precision(first, steps)
    assert (other.step.tolist(), other.total_steps.tolist()) == ([1, 1], [6, 6])
    (back,) = at_other_precision(other, steps)
    assert back.step.tolist() == [0, 0]
    assert list(at_other_precision(first, None)) == []
