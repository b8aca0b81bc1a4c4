"""The step clock: where each row of a batch stands in its own denoising run. Must not know schedulers or pipelines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

UNCOND, COND, UNKNOWN = 0, 1, 2
"""Values of `StepClock.branch`: which half of classifier-free guidance a row belongs to."""


@dataclass(frozen=True, slots=True)
class StepClock:
    """Step, number of steps and branch of each row; rows of one batch may differ in all three.

    Attributes:
        step: [B] int64, index of the step that a row is at, from 0.
        total: [B] int64, how many steps that row takes in all.
        branch: [B] int64, UNCOND, COND or UNKNOWN.
    """

    step: Tensor
    total: Tensor
    branch: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(part.shape) for part in (self.step, self.total, self.branch)}
        if len(shapes) != 1 or self.step.ndim != 1:
            raise ValueError(f"a step clock takes three tensors of one shape [B], got {sorted(shapes)}")

    @classmethod
    def unknown(cls, rows: int) -> StepClock:
        """The clock of rows of which nothing is known: step 0 of 1, branch UNKNOWN."""
        step = torch.zeros(rows, dtype=torch.int64)
        return cls(step, torch.ones_like(step), torch.full_like(step, UNKNOWN))

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return self.step.shape[0]

    def take(self, index: Tensor) -> StepClock:
        """The rows named by `index` [N] int64, in that order: a clock of N rows."""
        return StepClock(self.step[index], self.total[index], self.branch[index])
