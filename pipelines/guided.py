"""Between a pipeline's denoiser and whoever runs it: leaves out unconditional rows where a guidance plan says so.

One of these serves one job. Knows calls and branches; must not know families of pipelines, jobs, or how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.batch import take_rows
from pipelines.denoiser import COND, UNCOND, DenoiserCall
from pipelines.proxy import Clock
from quant.clock import StepClock
from quant.guidance.plan import KEPT, GuidancePlan, GuidanceStep
from quant.precision import PreciseSteps

Submit = Callable[[DenoiserCall], Tensor]
"""Runs a denoiser call: B rows to [B, ...]."""

OFF = "the pipeline runs one branch alone: guidance is off"


class GuidedCalls:
    """Answers the denoiser calls of one run of a pipeline by a plan; by full guidance where the plan does not fit.

    It serves pipelines that send both branches in one call, and those that send the conditional branch first and the
    unconditional one in a call of its own.
    """

    def __init__(self, submit: Submit, clock: Clock, plan: GuidancePlan, guidance: float) -> None:
        self._submit = submit
        self._clock = clock
        self._plan = plan
        self._guidance = guidance
        self._kept: list[Tensor] = []
        self._conditional: tuple[int, Tensor] | None = None  # of the step at hand, where branches come one by one
        self._started = False
        self._skipped = False
        self._given_up: str | None = None

    @property
    def unused(self) -> str | None:
        """Why the plan did not serve this run, or not all of it; None if it did. To be asked when the run is over."""
        could = any(not step.runs for step in self._plan.steps)
        return OFF if self._given_up is None and could and not self._skipped else self._given_up

    def __call__(self, call: DenoiserCall) -> Tensor:
        """The output [B, ...] for all rows of a call, of which some may not have been computed."""
        if not self._started:
            self._started = True
            self._given_up = self._plan.unfit(self._clock.timesteps, self._guidance)
        if self._given_up is not None:
            return self._submit(call)
        if self._clock.step >= len(self._plan.steps):
            return self._give_up(call, "the pipeline calls its denoiser after the last step")
        step = self._plan.steps[self._clock.step]
        cond, uncond = branch_rows(call)
        if len(cond) + len(uncond) < call.rows:
            return self._give_up(call, "the pipeline calls its denoiser with rows of neither branch")
        if not len(uncond):
            return self._alone_conditional(call)
        if len(self._kept) + step.runs < len(step.weights):
            return self._give_up(call, "the pipeline did not run both branches where the plan did")
        return self._both(call, step, cond, uncond) if len(cond) else self._alone_unconditional(call, step)

    def _both(self, call: DenoiserCall, step: GuidanceStep, cond: Tensor, uncond: Tensor) -> Tensor:
        if len(cond) != len(uncond):
            return self._give_up(call, f"{len(cond)} conditional rows go with {len(uncond)} unconditional ones")
        if step.runs:
            output = self._submit(replace(call, pattern=step.pattern))
            self._keep(output[cond], output[uncond])
            if step.is_plain:
                return output
            conditional, output = output[cond], output.clone()
        else:
            self._skipped = True
            conditional = self._submit(take_rows(call, cond))
            output = conditional.new_empty(call.rows, *conditional.shape[1:])
            output[cond] = conditional
        output[uncond] = self._unconditional(conditional, step)
        return output

    def _alone_conditional(self, call: DenoiserCall) -> Tensor:
        if self._conditional is not None and self._conditional[0] == self._clock.step:
            return self._give_up(call, "the pipeline runs the conditional branch more than once a step")
        output = self._submit(call)
        self._conditional = (self._clock.step, output)
        return output

    def _alone_unconditional(self, call: DenoiserCall, step: GuidanceStep) -> Tensor:
        at, conditional = self._conditional or (-1, None)
        if conditional is None or at != self._clock.step or conditional.shape[0] != call.rows:
            return self._give_up(call, "the pipeline runs the unconditional branch before the conditional one")
        if step.pattern:
            return self._give_up(call, "the pipeline runs each branch in a call of its own: none can share attention")
        if not step.runs:
            self._skipped = True
            return self._unconditional(conditional, step)
        output = self._submit(call)
        self._keep(conditional, output)
        return output if step.is_plain else self._unconditional(conditional, step)

    def _unconditional(self, conditional: Tensor, step: GuidanceStep) -> Tensor:
        used = torch.zeros_like(conditional, dtype=torch.float32)
        for weight, difference in zip(step.weights, self._kept[: len(step.weights)], strict=True):
            used += weight * difference
        return (conditional.float() - used).to(conditional)

    def _keep(self, conditional: Tensor, unconditional: Tensor) -> None:
        self._kept = [conditional.float() - unconditional.float(), *self._kept][:KEPT]

    def _give_up(self, call: DenoiserCall, reason: str) -> Tensor:
        self._given_up = reason
        return self._submit(call)


def kinds_of_calls(call: DenoiserCall, plan: GuidancePlan | None) -> Iterator[DenoiserCall]:
    """What else a plan makes of a call with both branches: its conditional rows alone; each way to share attention."""
    cond, uncond = branch_rows(call)
    if plan is None or not (len(cond) and len(uncond)):
        return
    if any(not step.runs for step in plan.steps):
        yield take_rows(call, cond)
    for pattern in sorted({step.pattern for step in plan.steps} - {0}):
        yield replace(call, pattern=pattern)


def at_other_precision(call: DenoiserCall, steps: PreciseSteps | None) -> Iterator[DenoiserCall]:
    """The call as it were at a step that other weights compute than those at its own, where there is one: where the
    first row is at a precise step, one that is not.
    """
    if steps is None:
        return
    places = torch.arange(steps.total_steps)
    precise = steps.rows(StepClock(places, torch.full_like(places, steps.total_steps), torch.zeros_like(places)))
    now = StepClock(call.step.cpu(), call.total_steps.cpu(), call.branch.cpu())
    step = places[precise != steps.rows(now)[0]][0]
    yield replace(
        call, step=torch.full_like(call.step, int(step)), total_steps=torch.full_like(call.step, steps.total_steps)
    )


def branch_rows(call: DenoiserCall) -> tuple[Tensor, Tensor]:
    """Indices of a call's conditional rows, and of its unconditional ones: [C] and [U] int64."""
    branch = call.branch.cpu()
    return (branch == COND).nonzero().flatten(), (branch == UNCOND).nonzero().flatten()
