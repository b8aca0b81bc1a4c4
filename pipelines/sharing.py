"""What a guidance plan costs by the calls of a recorded run, and which attention modules of a model may share in it.

Must not know how the plan's steps are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

import quant
from pipelines.batch import take_rows
from pipelines.denoiser import DenoiserCall
from pipelines.guided import branch_rows
from pipelines.library_call import library_calls
from pipelines.trials import Tape
from quant.guidance.choose import Dynamics, Matrix, influences
from quant.guidance.macs import Costs, costs, multiply_adds, saving
from quant.guidance.measure import sharing_errors
from quant.guidance.patterns import choose_patterns
from quant.guidance.plan import GuidancePlan
from quant.guidance.share import NO_SHARING, Patterns, attention_modules, refusals

ATTEMPTS = 3
"""Sharings that are offered, each with half of the room of the one before."""

WORTH = 0.01
"""Share of all multiply-adds that sharing must save: each pattern is a compiled graph of its own."""


def count_costs(module: nn.Module, tape: Tape, patterns: Patterns = NO_SHARING) -> Costs:
    """Multiply-adds of one picture at one step, by the first calls of a run.

    Raises:
        BackendError: patterns share attention between branches that come in calls of their own, or in a module that
            cannot.
    """
    pair = _pair(module, tape, 0)
    if pair is not None:
        return costs(module, pair, patterns)
    if len(patterns.names) > 1:
        raise quant.BackendError("the pipeline runs each branch in a call of its own: none can share attention")
    cond, uncond = (_alone(module, tape, branch) for branch in (0, 1))
    return Costs((cond + uncond,), cond)


def with_sharing(
    plan: GuidancePlan, budget: float, dynamics: Dynamics, module: nn.Module, tape: Tape
) -> Iterator[GuidancePlan]:
    """The plan with attention shared at steps that run both branches, by what it leaves of the budget; then with less
    and less sharing, for as long as that is worth it. None where no module can share.
    """
    left = budget**2 - (plan.measured_error or 0.0) ** 2
    calls = [_pair(module, tape, step) for step in range(len(plan.steps))]
    pairs = [call for call in calls if call is not None]
    if left <= 0 or len(pairs) < len(calls):
        return
    refused = refusals(module, pairs[0])
    names = [name for name in attention_modules(module) if name not in refused]
    ran = [step for step, own in enumerate(plan.steps) if own.runs]
    if not names:
        return
    effects = _effects(plan, dynamics, module, tape, [pairs[step] for step in ran], names, ran)
    saved = _saved(module, pairs[0], names)
    for attempt in range(ATTEMPTS):
        chosen = choose_patterns(effects, saved, (left / 4**attempt) ** 0.5)
        kinds = sorted(set(chosen) - {frozenset()}, key=sorted)
        patterns = ((), *(tuple(names[module] for module in sorted(kind)) for kind in kinds))
        steps = list(plan.steps)
        for step, kind in zip(ran, chosen, strict=True):
            steps[step] = steps[step].model_copy(update={"pattern": kinds.index(kind) + 1 if kind else 0})
        taken = count_costs(module, tape, Patterns(patterns))
        share = saving(steps, taken)
        if share < plan.saving + WORTH:
            return
        yield plan.model_copy(update={"steps": tuple(steps), "patterns": patterns, "saving": share})


def _effects(
    plan: GuidancePlan,
    dynamics: Dynamics,
    module: nn.Module,
    tape: Tape,
    calls: list[quant.Call],
    names: list[str],
    ran: list[int],
) -> Matrix:
    """[steps that ran, modules] relative error of the final latents if one module shares at one step."""
    scale = plan.calibrated_guidance
    errors = sharing_errors(module, calls, names, scale).numpy()
    moved = influences(dynamics, [step.runs for step in plan.steps], [step.weights for step in plan.steps])
    sizes = np.zeros((len(ran), 1))
    for place, step in enumerate(ran):
        cond, uncond = tape.guided(tape.conditional, step), tape.guided(tape.unconditional, step)
        guided = _norms(uncond + scale * (cond - uncond))
        # the guided output is c + (g - 1) d, so that an error of it is (g - 1) times that of the difference
        relative = guided / _norms(tape.latents[-1]) / max(abs(scale - 1), 1e-6)
        sizes[place] = float(relative.mean()) * moved[step]
    return np.asarray(errors * sizes, dtype=np.float64)


def _saved(module: nn.Module, pair: quant.Call, names: list[str]) -> list[int]:
    """Multiply-adds of each module for one of a pair's rows."""
    counted = multiply_adds(module, pair.take(pair.pairs()[0][:1])).modules
    return [counted.get(name, 0) for name in names]


def _norms(tensor: Tensor) -> Tensor:
    return tensor.cpu().flatten(1).double().square().sum(dim=1).sqrt()


def _pair(module: nn.Module, tape: Tape, step: int) -> quant.Call | None:
    """The call of a step with both branches in it, if there is one and the library can take it whole."""
    for call in tape.calls[step]:
        if all(len(index) for index in branch_rows(call)):
            parts = library_calls(type(module), call)
            return parts[0] if len(parts) == 1 else None
    return None


def _alone(module: nn.Module, tape: Tape, branch: int) -> int:
    """Multiply-adds of one row of a branch."""
    for call in tape.calls[0]:
        index = branch_rows(call)[branch]
        if len(index):
            return multiply_adds(module, _one_row(module, call, index)).total
    return 0


def _one_row(module: nn.Module, call: DenoiserCall, index: Tensor) -> quant.Call:
    return library_calls(type(module), take_rows(call, index[:1]))[0]
