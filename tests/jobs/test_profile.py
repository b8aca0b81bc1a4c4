"""A profile's card tells what its guidance plan leaves out, in letters that agree with the plan's own."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.profile import GuidanceCard
from quant.guidance.plan import GuidancePlan

STEPS: list[dict[str, Any]] = [
    {"unconditional": "reuse", "gain": 0.0},
    {"unconditional": "run", "deviation": 0.01},
    {"unconditional": "reuse", "gain": 0.0, "earlier": [0.0]},
    {"unconditional": "run", "gain": 1.5, "earlier": [-0.4], "pattern": 1},
    {"unconditional": "reuse", "gain": 0.0, "earlier": [0.7], "deviation": 0.03},
]
PLAN: dict[str, Any] = {
    "timesteps": [5, 4, 3, 2, 1],
    "steps": STEPS,
    "patterns": [[], ["attn1"]],
    "guidance": [1.5, 4.0],
    "calibrated_guidance": 3.0,
    "saving": 0.31,
    "predicted_error": 0.01,
    "measured_error": 0.02,
}


def test_a_card_says_what_the_plan_says() -> None:
    plan = GuidancePlan.model_validate(PLAN)
    card = GuidanceCard.of_plan(plan.model_dump(mode="json"))
    assert card.steps == plan.letters == "NBNSR"
    assert card.deviations == (0.0, 0.01, 0.0, 0.0, 0.03)
    assert (card.saving, card.guidance, card.calibrated_guidance) == (0.31, (1.5, 4.0), 3.0)
    assert (card.predicted_error, card.measured_error) == (0.01, 0.02)


def test_what_is_no_plan_is_refused_as_a_broken_artifact_is() -> None:
    with pytest.raises(ValidationError):
        GuidanceCard.of_plan({"steps": [{"unconditional": "perhaps"}]})
