"""Step-wise precision: which steps of a schedule more exact weights compute. Knows clocks, no weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from quant.clock import StepClock


class PreciseSteps(BaseModel):
    """What a manifest says of them.

    `first_steps` and `last_steps` are of a schedule of `total_steps`; `weights_bytes` are the more exact copy's, as it
    is stored, or of the float weights in float32.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: Literal["float", "w8a8"]
    first_steps: int = Field(ge=0)
    last_steps: int = Field(ge=0)
    total_steps: int = Field(ge=1)
    weights_bytes: int = Field(ge=0)

    @model_validator(mode="after")
    def _leaves_steps(self) -> Self:
        asked = self.first_steps + self.last_steps
        if not 0 < asked < self.total_steps:
            raise ValueError(f"{asked} of {self.total_steps} steps are precise: some must be, and some not")
        return self

    def rows(self, clock: StepClock) -> Tensor:
        """Which rows are at such a step: [B] bool. A schedule of other length has at least the same share of them."""
        first, last = (-(-count * clock.total // self.total_steps) for count in (self.first_steps, self.last_steps))
        return (clock.step < first) | (clock.step >= clock.total - last)
