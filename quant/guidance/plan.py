"""A guidance plan: what each step of a schedule leaves out of classifier-free guidance. Data; knows no tensors."""

from __future__ import annotations

import math
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

KEPT: Final = 3
"""Differences between branches that are kept while a picture is made: the newest, and those before it."""

CLOSE: Final = 1e-5
"""Timesteps whose relative difference is less are equal: machines round them differently."""


class GuidanceStep(BaseModel):
    """One step. `run` computes both branches, and conditional less unconditional output is the newest kept difference;
    `reuse` computes the conditional branch alone.

    Either way the pipeline gets as unconditional output the conditional one less a weighted sum of kept differences:
    `gain` times the newest and `earlier` times those before it, the last one first. A gain of 1 alone, where both ran,
    leaves the output as it is; other weights there take back what steps before it got wrong. Weights of 0 are no
    guidance.
    """

    model_config = _STRICT

    unconditional: Literal["run", "reuse"] = "run"
    gain: float = 1.0
    earlier: tuple[float, ...] = Field((), max_length=KEPT - 1)
    pattern: int = Field(0, ge=0, description="Which attention modules share, an index into the plan's patterns.")
    deviation: float = Field(
        0.0, ge=0, description="Relative error of the latents after it against full guidance, measured with the plan."
    )

    @property
    def runs(self) -> bool:
        """Whether both branches are computed."""
        return self.unconditional == "run"

    @property
    def weights(self) -> tuple[float, ...]:
        """Of kept differences, the newest first, without zeros at the end."""
        found = [self.gain, *self.earlier]
        while found and found[-1] == 0:
            found.pop()
        return tuple(found)

    @property
    def is_plain(self) -> bool:
        """Whether both branches' outputs are used as they are."""
        return self.runs and self.weights == (1.0,)

    @property
    def letter(self) -> str:
        """B: both branches; S: both, sharing attention; R: reuse; N: no guidance."""
        if self.runs:
            return "S" if self.pattern else "B"
        return "R" if self.weights else "N"


class GuidancePlan(BaseModel):
    """What each step leaves out, and what that saves and costs.

    Attributes:
        timesteps: of the schedule that it is made for, as the scheduler has them.
        steps: one for each.
        patterns: names of attention modules whose unconditional half takes over the conditional half's output; the
            first is empty. With `maps`, it takes over the attention map only (TR-DQ).
        guidance: least and greatest guidance scale that it serves; `calibrated_guidance` is that of the calibration.
        saving: share of the multiply-adds of all denoiser calls of a picture that it leaves out, counted.
        predicted_error, measured_error: relative error of the final latents against full guidance, mean over pictures,
            by the model that chose the plan, None where nobody did, and by generating pictures with it.
    """

    model_config = _STRICT

    timesteps: tuple[float, ...]
    steps: tuple[GuidanceStep, ...]
    patterns: tuple[tuple[str, ...], ...] = ((),)
    maps: bool = False
    guidance: tuple[float, float]
    calibrated_guidance: float
    saving: float
    predicted_error: float | None = None
    measured_error: float | None = None

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        if len(self.steps) != len(self.timesteps):
            raise ValueError(f"{len(self.steps)} steps for {len(self.timesteps)} timesteps")
        if not self.patterns or self.patterns[0]:
            raise ValueError("the first pattern must be empty")
        kept = 0
        for number, step in enumerate(self.steps):
            kept += step.runs
            if len(step.weights) > kept:
                raise ValueError(f"step {number} uses {len(step.weights)} differences, and {kept} are kept by then")
            if step.pattern >= len(self.patterns):
                raise ValueError(f"step {number} has pattern {step.pattern} of {len(self.patterns)}")
            if step.pattern and not step.runs:
                raise ValueError(f"step {number} computes one branch alone: there is nobody to share attention with")
        return self

    @property
    def letters(self) -> str:
        """What each step does, a letter each; see `GuidanceStep.letter`."""
        return "".join(step.letter for step in self.steps)

    def unfit(self, timesteps: tuple[float, ...], guidance: float) -> str | None:
        """Why a request cannot be served by this plan; None if it can."""
        low, high = self.guidance
        if not low <= guidance <= high:
            return f"guidance {guidance:g} is outside of the calibrated {low:g} to {high:g}"
        if len(timesteps) != len(self.timesteps):
            return f"it takes {len(timesteps)} steps, and the plan was made for {len(self.timesteps)}"
        for asked, known in zip(timesteps, self.timesteps, strict=True):
            if not math.isclose(asked, known, rel_tol=CLOSE, abs_tol=CLOSE):
                return f"its schedule is another: timestep {asked:g} stands where the plan was made for {known:g}"
        return None
