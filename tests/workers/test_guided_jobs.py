"""Jobs by a profile with a guidance plan: alone, in company, canceled, and where the plan does not fit the request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import quant
from jobs.job import JobResult, new_job_id
from jobs.request import ImageRequest
from pipelines.load import load_components, load_denoiser
from pipelines.quantized import denoiser_sha256
from quant.guidance.alone import save_plan
from quant.guidance.plan import GuidanceStep
from quant.recipe_parts import Guidance
from tests.pipelines.one_by_one import by_hand, step
from tests.workers.kit import TINY, TOKEN, Kit, Notes, decibels, request, tiny_settings
from workers.settings import WorkerSettings
from workers.task import JobCanceledSignal, Task

PROFILE = "float-cfg"
STEPS = (step("B"), step("R", 0.9), step("B", 1.3, -0.3), step("R"), step("R", 0.8, 0.1), step("B", 1.2, -0.1, 0.1))
LONG = 100


def add_profile(settings: WorkerSettings, steps: Sequence[GuidanceStep], name: str = PROFILE, **changes: Any) -> Path:
    """Gives the tiny model of some settings a profile that runs float by a plan for so many DDIM steps."""
    components = load_components(settings.models_dir / TINY)
    scheduler = components.parts["scheduler"]
    scheduler.set_timesteps(len(steps))
    folder = settings.artifacts_dir / TINY / name
    recipe = quant.Recipe(name=name, scope="none", guidance=Guidance(method="given", steps="B" * len(steps)))
    save_plan(
        folder,
        load_denoiser(components),
        by_hand([float(timestep) for timestep in scheduler.timesteps], steps, **changes),
        recipe,
        model=TINY,
        model_sha256=denoiser_sha256(settings.models_dir / TINY, components.denoiser_part),
        calibration={},
        version="0",
    )
    return folder


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.rows.GAIN", 0.0)  # batch whether or not it pays for models so small
        settings = tiny_settings(tmp_path_factory.mktemp("data"))
        add_profile(settings, STEPS)
        add_profile(settings, [step("B"), *[step("R")] * (LONG - 1)], "long-cfg")
        made = Kit(settings)
        yield made
        made.close()


def planned(**changes: Any) -> ImageRequest:
    return request(**{"profile": PROFILE, "guidance_scale": 3.0, **changes})


def codes(result: JobResult) -> list[str]:
    return [notice.code for notice in result.notices]


def test_an_answer_says_what_the_plan_left_out(kit: Kit) -> None:
    before = len(kit.batches)
    result = kit.run(planned())
    assert result.used.guidance_saving == 0.25 and result.used.backend == "torch"
    assert codes(result) == []
    assert [batch.rows for batch in kit.batches[before:]] == [2, 1, 2, 1, 1, 2]
    assert result.costs.denoiser_calls == 6
    full = kit.run(planned(profile="float"))
    assert full.used.guidance_saving is None
    assert 15 < decibels(*(kit.pictures(one)[0] for one in (result, full))) < 60


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_inference_steps": 7}, "it takes 7 steps, and the plan was made for 6"),
        ({"guidance_scale": 1.0}, "guidance 1 is outside of the calibrated 1.5 to 6"),
        ({"guidance_scale": 8.0}, "guidance 8 is outside"),
    ],
)
def test_a_request_that_the_plan_does_not_fit_is_served_in_full(kit: Kit, changes: dict[str, Any], reason: str) -> None:
    result = kit.run(planned(**changes))
    assert codes(result) == ["guidance_plan_unused"]
    assert reason in result.notices[0].message and PROFILE in result.notices[0].message
    assert result.used.guidance_saving == 0.0
    assert kit.files(result)[0] != b""
    full = kit.run(planned(profile="float", **changes))
    assert decibels(kit.pictures(result)[0], kit.pictures(full)[0]) > 60


def test_a_negative_prompt_is_served_by_the_plan_and_told(kit: Kit) -> None:
    result = kit.run(planned(negative_prompt="blue"))
    assert codes(result) == ["guidance_plan_negative_prompt"]
    assert "without a negative prompt" in result.notices[0].message
    assert result.used.guidance_saving == 0.25


def test_pictures_by_plans_do_not_depend_on_their_company(kit: Kit) -> None:
    """Jobs of one profile that are at steps of other kinds, with kept differences of their own."""
    mixed = [
        *(planned(seed=seed, n=1 + seed % 2) for seed in range(4)),
        planned(seed=4, guidance_scale=5.0),
        planned(seed=5, num_inference_steps=9),
        planned(seed=6, negative_prompt="blue", prompt="green"),
        planned(seed=7, profile="float"),
    ]
    alone = [kit.run(one) for one in mixed]
    before = len(kit.batches)
    together = kit.run_together(mixed)
    assert max(batch.jobs for batch in kit.batches[before:]) >= 3
    for one, other in zip(alone, together, strict=True):
        assert codes(one) == codes(other)
        for picture, again in zip(kit.pictures(one), kit.pictures(other), strict=True):
            assert decibels(picture, again) >= 50


def test_a_canceled_job_leaves_nothing_of_its_guidance_behind(kit: Kit) -> None:
    wanted = planned(profile="long-cfg", num_inference_steps=LONG, seed=3)
    expected = kit.files(kit.run(wanted))
    task, notes, outcome = Task(new_job_id(), TOKEN), Notes(), list[BaseException]()

    def job() -> None:
        try:
            kit.run(wanted.model_copy(update={"seed": 9}), task, notes)
        except JobCanceledSignal as signal:
            outcome.append(signal)

    thread = threading.Thread(target=job)
    thread.start()
    assert notes.first_step.wait(30)
    steps = len(notes.steps)
    task.cancel()
    thread.join(30)
    assert isinstance(outcome[0], JobCanceledSignal) and len(notes.steps) <= steps + 2
    assert kit.files(kit.run(wanted)) == expected


def test_the_catalog_shows_the_plan(kit: Kit) -> None:
    card = kit.catalog.profile(TINY, PROFILE)
    assert card.guidance is not None
    assert (card.guidance.steps, card.guidance.saving, card.guidance.guidance) == ("BRBRRB", 0.25, (1.5, 6.0))
    assert (card.weight_bits, card.activation_bits, card.weights_bytes) == (32, 32, card.float_weights_bytes)
    assert kit.catalog.profile(TINY, "float").guidance is None
