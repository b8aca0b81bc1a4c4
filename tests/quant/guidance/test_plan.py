"""Plans say what they cannot do: weights of differences that nobody kept, other schedules, other guidance."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from quant.guidance.plan import KEPT, GuidancePlan, GuidanceStep

B, R = GuidanceStep(), GuidanceStep(unconditional="reuse", gain=0.9, earlier=(0.1,))
N = GuidanceStep(unconditional="reuse", gain=0.0)


def plan(*steps: GuidanceStep, **changes: Any) -> GuidancePlan:
    fields = {"timesteps": tuple(range(900, 900 - len(steps), -1)), "steps": steps, "guidance": (1.5, 4.0)}
    return GuidancePlan.model_validate({"calibrated_guidance": 3.0, "saving": 0.1, **fields, **changes})


def test_letters_say_what_each_step_runs() -> None:
    shared = GuidanceStep(pattern=1)
    assert plan(N, B, B, R, N, shared, patterns=((), ("attn1",))).letters == "NBBRNS"
    assert B.is_plain and not GuidanceStep(gain=1.2).is_plain and not R.is_plain
    assert GuidanceStep(gain=1.0, earlier=(0.0, 0.0)).is_plain
    assert GuidanceStep(gain=0.0, earlier=(0.5,)).weights == (0.0, 0.5)


@pytest.mark.parametrize(
    ("steps", "changes", "fault"),
    [
        ((R,), {}, "step 0 uses 2 differences, and 0 are kept"),
        ((B, R), {}, "step 1 uses 2 differences, and 1 are kept"),
        ((B, GuidanceStep(pattern=2)), {"patterns": ((), ("a",))}, "pattern 2 of 2"),
        ((B, GuidanceStep(unconditional="reuse", pattern=1)), {"patterns": ((), ("a",))}, "nobody to share"),
        ((B, B), {"timesteps": (1.0,)}, "2 steps for 1 timesteps"),
        ((B,), {"patterns": (("a",),)}, "first pattern must be empty"),
        ((B,), {"saving": float("nan")}, "finite"),
    ],
)
def test_what_cannot_run_is_refused(steps: tuple[GuidanceStep, ...], changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        plan(*steps, **changes)


def test_no_more_differences_are_asked_for_than_are_kept() -> None:
    with pytest.raises(ValidationError, match="earlier"):
        GuidanceStep(earlier=(0.1,) * KEPT)


def test_a_plan_serves_its_schedule_and_guidance_only() -> None:
    made = plan(B, B, N)
    assert made.unfit((900, 899, 898), 1.5) is None
    assert made.unfit((900, 899.000001, 898), 4.0) is None, "machines round differently"
    assert "2 steps, and the plan was made for 3" in str(made.unfit((900, 898), 3.0))
    assert "timestep 899.5 stands where the plan was made for 899" in str(made.unfit((900, 899.5, 898), 3.0))
    assert "guidance 1 is outside of the calibrated 1.5 to 4" in str(made.unfit((900, 899, 898), 1.0))


def test_a_plan_survives_json() -> None:
    made = plan(B, B, R, GuidanceStep(gain=1.7, earlier=(-0.8, 0.1), deviation=0.01))
    assert GuidancePlan.model_validate_json(made.model_dump_json()) == made
