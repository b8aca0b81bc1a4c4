"""Guidance plans of models: recorded, chosen under a budget, tried by drawing pictures, and tightened until they hold.

Must not know jobs, artifacts, or how anything is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from jobs.profile import Defaults
from pipelines.calibrate import Progress, silent
from pipelines.families import Subject
from pipelines.load import Components
from pipelines.sharing import count_costs, with_sharing
from pipelines.trials import Tape, Trials, Tried
from quant.errors import RecipeError
from quant.guidance.choose import Choice, Dynamics, Weights, best_choices, corrected, weights_of
from quant.guidance.macs import saving
from quant.guidance.plan import GuidancePlan, GuidanceStep
from quant.guidance.record import Responses, inner_products, norms
from quant.guidance.share import Patterns, matching
from quant.recipe_parts import Guidance

FITTED, CHECKED = 24, 16
"""Pictures that a plan is fitted on, and others that it must hold on, at most."""

FEW = 5
"""Fewer pictures than this are fitted on and checked by alike."""

PROBED = 4
"""Pictures whose steps are put at fault, one by one."""

PROBES = 28
"""Steps that are put at fault, about, at most: evenly spread, and the last two."""

CORRECTIONS = 2
"""Times that weights are fitted again to a run with them."""

ROUNDS = 5
"""Choices that are tried."""

SMALL = 0.1
"""The first step's difference, which has none before it to be reused, is put at fault by this share of itself."""

DIGITS = 5
"""Of weights and deviations in a plan."""

LETTERS: dict[str, GuidanceStep] = {
    "B": GuidanceStep(),
    "R": GuidanceStep(unconditional="reuse"),
    "N": GuidanceStep(unconditional="reuse", gain=0.0),
}
"""What the letters of a given plan mean."""


@dataclass(frozen=True)
class _Pictures:
    """Some subjects, the i-th from seed `first + i`."""

    subjects: Sequence[Subject]
    first: int


def make_plan(
    components: Components,
    denoiser: nn.Module,
    subjects: Sequence[Subject],
    defaults: Defaults,
    guidance: Guidance,
    *,
    seed: int = 0,
    batch: int = 8,
    progress: Progress = silent,
) -> GuidancePlan:
    """What a recipe's guidance part leaves out for a model at its default settings.

    A `plan` is fitted on some of the subjects and must hold on others: of the choices of steps tried, it is the one
    that skips most passes whose error, of the final latents of pictures drawn by it, is within the budget.

    Args:
        components: of the model.
        denoiser: its float module.
        subjects: what to draw; 24 to fit on and 16 to check by are used at most.
        defaults: at which settings.
        guidance: of the recipe; its method is not "none".
        seed: of the first picture; the i-th is drawn from `seed + i`.
        batch: pictures that are drawn together.
        progress: told what is being done.

    Raises:
        RecipeError: the recipe's steps or blocks do not fit the model.
        UnsupportedModel: the pipeline runs one branch alone, or in an order that no plan can serve.
        CalibrationError: the model produced NaN or infinity, or guidance has no effect.
    """
    fitted, checked = divided(subjects, seed)
    batches = [-(-len(pictures.subjects) // batch) for pictures in (fitted, checked)]
    runs = sum(batches) + min(PROBES, defaults.num_inference_steps) + ROUNDS * (CORRECTIONS * batches[0] + batches[1])
    trials = Trials(components, denoiser, defaults, batch=batch, told=_counted(progress, runs))
    if guidance.method == "plan":
        plan = Planner(trials, denoiser, guidance, defaults, fitted, checked).plan()
    else:
        plan = _as_given(trials, denoiser, guidance, defaults, checked)
    progress("planning guidance", runs, runs)
    return plan


def divided(subjects: Sequence[Subject], seed: int) -> tuple[_Pictures, _Pictures]:
    """Those to fit on, and those to check by."""
    if len(subjects) < FEW:
        return (_Pictures(subjects, seed),) * 2
    count = min(CHECKED, len(subjects) * CHECKED // (FITTED + CHECKED))
    at = min(FITTED, len(subjects) - count)
    return _Pictures(subjects[:at], seed), _Pictures(subjects[at : at + count], seed + at)


def _counted(progress: Progress, total: int) -> Callable[[], None]:
    """Tells of one more run each time; how many there will be is an upper bound."""
    done = 0

    def told() -> None:
        nonlocal done
        done += 1
        progress("planning guidance", min(done, total - 1), total)

    return told


def _as_given(
    trials: Trials, denoiser: nn.Module, guidance: Guidance, defaults: Defaults, checked: _Pictures
) -> GuidancePlan:
    """The recipe's own plan, measured: steps by letters, or attention maps of some modules shared at every step."""
    tape = trials.record(checked.subjects, checked.first)[0]
    patterns: tuple[tuple[str, ...], ...] = ((),)
    if guidance.method == "maps":
        patterns = ((), matching(denoiser, guidance.blocks))
        steps: tuple[GuidanceStep, ...] = (GuidanceStep(pattern=1),) * len(tape.timesteps)
    else:
        steps = tuple(LETTERS[letter] for letter in guidance.steps)
        if len(steps) != len(tape.timesteps):
            raise RecipeError(f"guidance.steps are {len(steps)} letters for a schedule of {len(tape.timesteps)} steps")
        if "R" in guidance.steps.partition("B")[0]:
            raise RecipeError("guidance.steps reuse a difference before any step ran both branches")
    shared = Patterns(patterns, maps=guidance.method == "maps")
    plan = GuidancePlan(
        timesteps=tape.timesteps,
        steps=steps,
        patterns=patterns,
        maps=shared.maps,
        guidance=_served(guidance, defaults),
        calibrated_guidance=defaults.guidance_scale,
        saving=saving(steps, count_costs(denoiser, tape, shared)),
    )
    return measured(plan, trials.run(checked.subjects, checked.first, plan))


def measured(plan: GuidancePlan, tried: Tried) -> GuidancePlan:
    """The plan with the errors that pictures drawn by it had."""
    steps = (
        step.model_copy(update={"deviation": round(deviation, DIGITS)})
        for step, deviation in zip(plan.steps, tried.deviations, strict=True)
    )
    return plan.model_copy(update={"measured_error": tried.error, "steps": tuple(steps)})


def _served(guidance: Guidance, defaults: Defaults) -> tuple[float, float]:
    low, high = guidance.scale_range
    return low * defaults.guidance_scale, high * defaults.guidance_scale


class Planner:
    """Chooses a plan for one model."""

    def __init__(
        self,
        trials: Trials,
        denoiser: nn.Module,
        guidance: Guidance,
        defaults: Defaults,
        fitted: _Pictures,
        checked: _Pictures,
    ) -> None:
        self._trials, self._denoiser = trials, denoiser
        self._guidance, self._defaults = guidance, defaults
        self._fitted, self._checked = fitted, checked

    def plan(self) -> GuidancePlan:
        """The plan that skips most of those tried that are within the budget; full guidance where none is."""
        tapes, dynamics = self._recorded()
        plan = self._search(dynamics)
        if not self._guidance.share_attention:
            return plan
        for candidate in with_sharing(plan, self._guidance.budget, dynamics, self._denoiser, tapes[0]):
            tried = self._check(candidate)
            if tried.error <= self._guidance.budget:
                return measured(candidate, tried)
        return plan

    def offers(self) -> list[tuple[float, float]]:
        """(saving, error) of the choices of steps, as expected times what a middle one shows to be missing."""
        _, dynamics = self._recorded()
        choices = [choice for choice in best_choices(dynamics).values() if choice.skipped and choice.error > 0]
        if not choices:
            return []
        middle = choices[2 * len(choices) // 3]
        ratio = self._try(dynamics, middle)[1].error / middle.error
        plans = [self._planned(one.runs, weights_of(dynamics, one.runs), one.error) for one in choices]
        return [(plan.saving, ratio * one.error) for plan, one in zip(plans, choices, strict=True)]

    def _recorded(self) -> tuple[list[Tape], Dynamics]:
        """Runs in full guidance, and what they tell; remembers those to check by too."""
        tapes = self._trials.record(self._fitted.subjects, self._fitted.first)
        if self._checked is not self._fitted:
            self._trials.record(self._checked.subjects, self._checked.first)
        self._costs = count_costs(self._denoiser, tapes[0])
        self._timesteps = tapes[0].timesteps
        return tapes, self._dynamics(tapes)

    def _dynamics(self, tapes: Sequence[Tape]) -> Dynamics:
        pictures = len(self._fitted.subjects)
        count, subjects = len(self._timesteps), self._fitted.subjects[:PROBED]
        gram = np.zeros((count, count))
        for tape in tapes:
            gram += inner_products(tape.differences(), norms(tape.latents[-1])) / pictures
        differences = [difference[: len(subjects)] for difference in tapes[0].differences()]
        responses = Responses(count)
        for step in sorted({*range(0, count, -(-count // PROBES)), max(0, count - 2), count - 1}):
            own = differences[step]
            error = differences[max(0, step - 2)] - own  # what reusing a difference for two steps would do
            error = error if error.any() else SMALL * own
            if error.any():
                changes = self._trials.probe(tapes[0], subjects, self._fitted.first, step, error)
                responses.add(step, error, changes)
        return responses.dynamics(gram)

    def _search(self, dynamics: Dynamics) -> GuidancePlan:
        """Choices by falling expected error, which is corrected by what those tried really had."""
        choices, budget = best_choices(dynamics), self._guidance.budget
        best = self._planned((True,) * dynamics.steps, weights_of(dynamics, (True,) * dynamics.steps), 0.0)
        best = best.model_copy(update={"measured_error": 0.0})
        low, failed, ratio = 0, dynamics.steps + 1, 1.0
        for _ in range(ROUNDS):
            between = [skipped for skipped in choices if low < skipped < failed]
            likely = [skipped for skipped in between if choices[skipped].error * ratio <= budget]
            if not likely and (failed > dynamics.steps or not between):
                break
            skipped = max(likely) if likely else between[len(between) // 2]
            plan, tried = self._try(dynamics, choices[skipped])
            ratio = tried.error / max(choices[skipped].error, 1e-12)
            if tried.error <= budget:
                best, low = measured(plan, tried), skipped
            else:
                failed = skipped
        return best

    def _try(self, dynamics: Dynamics, choice: Choice) -> tuple[GuidancePlan, Tried]:
        """A plan for a choice, its weights corrected by runs with them, and what it does to pictures that it does not
        know.
        """
        weights = weights_of(dynamics, choice.runs)
        for _ in range(CORRECTIONS):
            plan = self._planned(choice.runs, weights, choice.error)
            tried = self._trials.run(self._fitted.subjects, self._fitted.first, plan)
            weights = corrected(dynamics, choice.runs, weights, tried.inner)
        plan = self._planned(choice.runs, weights, choice.error)
        return plan, self._check(plan)

    def _check(self, plan: GuidancePlan) -> Tried:
        return self._trials.run(self._checked.subjects, self._checked.first, plan)

    def _planned(self, runs: Sequence[bool], weights: Weights, expected: float) -> GuidancePlan:
        steps = tuple(_step(ran, own) for ran, own in zip(runs, weights, strict=True))
        return GuidancePlan(
            timesteps=self._timesteps,
            steps=steps,
            guidance=_served(self._guidance, self._defaults),
            calibrated_guidance=self._defaults.guidance_scale,
            saving=saving(steps, self._costs),
            predicted_error=expected,
        )


def _step(ran: bool, weights: tuple[float, ...]) -> GuidanceStep:
    gain, *earlier = [round(weight, DIGITS) for weight in weights] or [0.0]
    return GuidanceStep(unconditional="run" if ran else "reuse", gain=gain, earlier=tuple(earlier))
