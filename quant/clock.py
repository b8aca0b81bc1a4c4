"""The step clock: where each row of a batch stands in its own denoising run, and what layers read of it meanwhile.

Must not know schedulers or pipelines.
"""

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


BRANCHES = 3
"""How many values a branch can have: per-time tables have so many columns."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The time of each row of a call, as rows of an artifact's per-time tables. What layers read while they run.

    Attributes:
        row: [B] int64, slot of each row: for scales. The nearest one where the row's timestep is not in the schedule.
        branch: [B] int64, UNCOND, COND or UNKNOWN.
        slot: int64 [B], or [B, L] where each token has a timestep of its own: for features.
        known: bool, like `slot`: whether that is exactly the slot's timestep (and request constants).
        features: float32 [*slot.shape, F], outputs of all looked-up layers side by side, read where `known` is false;
            None where every table answers.
    """

    row: Tensor
    branch: Tensor
    slot: Tensor
    known: Tensor
    features: Tensor | None = None

    @property
    def key(self) -> Tensor:
        """[B] int64, index into tables of [slots, BRANCHES] entries laid flat."""
        return self.row * BRANCHES + self.branch


class MomentHolder:
    """Where the layers of one module find the moment of the call that runs: one call at a time."""

    __slots__ = ("_now",)

    def __init__(self) -> None:
        self._now: Moment | None = None

    @property
    def now(self) -> Moment:
        """The current call's moment.

        Raises:
            RuntimeError: a layer that depends on time was called outside of a call.
        """
        if self._now is None:
            raise RuntimeError("a layer that depends on time ran outside of a call: set the moment first")
        return self._now

    @now.setter
    def now(self, moment: Moment | None) -> None:
        self._now = moment
