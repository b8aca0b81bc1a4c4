"""Runs of a pipeline that tell of its guidance: recorded in full, replayed with one step at fault, tried with a plan.

Must not know how plans are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

import quant
from jobs.profile import Defaults
from pipelines.batch import take_rows
from pipelines.calibrate import batched_range, run_pipeline
from pipelines.denoiser import DenoiserCall, run_module
from pipelines.families import Subject, UnsupportedModel
from pipelines.guided import branch_rows
from pipelines.load import Components
from quant.guidance.choose import Matrix
from quant.guidance.plan import GuidancePlan
from quant.guidance.record import inner_products, norms

KEPT_CALLS = 2
"""Pictures whose calls a tape keeps: what sharing attention is tried on."""


@dataclass
class Tape:
    """One run of n pictures.

    Attributes:
        conditional, unconditional: outputs [n, ...] by step, in the order of pictures.
        latents: [n, ...] float32 on the CPU after each step.
        calls: of each step, in order, cut to the first pictures.
        timesteps: the scheduler's.
    """

    conditional: dict[int, Tensor] = field(default_factory=dict)
    unconditional: dict[int, Tensor] = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)
    calls: dict[int, list[DenoiserCall]] = field(default_factory=dict)
    timesteps: tuple[float, ...] = ()

    def write(self, call: DenoiserCall, output: Tensor) -> None:
        """Keeps what a call was answered."""
        step, rows = int(call.step[0]), branch_rows(call)
        for branch, index in zip((self.conditional, self.unconditional), rows, strict=True):
            if len(index):
                branch[step] = output[index]
        if step not in self.conditional:
            raise UnsupportedModel(
                "no guidance can be planned: the pipeline runs the unconditional branch before the conditional one"
            )
        shown = torch.cat([index[:KEPT_CALLS] for index in rows])
        self.calls.setdefault(step, []).append(take_rows(call, shown))

    def read(self, call: DenoiserCall, *, error: Tensor | None = None) -> Tensor:
        """What a call was answered in the recorded run, for its first pictures; the difference is wrong by `error`."""
        step, rows = int(call.step[0]), branch_rows(call)
        output = call.sample.new_empty(call.rows, *self.conditional[step].shape[1:])
        output[rows[0]] = self.conditional[step][: len(rows[0])].to(output)
        if len(rows[1]):
            unconditional = self.unconditional[step][: len(rows[1])].to(output)
            output[rows[1]] = unconditional
            if error is not None:
                guided = (rows[1], slice(0, error.shape[1]))  # see `guided`
                output[guided] -= error.to(output)
        return output

    def guided(self, outputs: Mapping[int, Tensor], step: int) -> Tensor:
        """The part of a branch's output that moves the latents, [n, ...] float32: where a model also puts out a
        variance, the first half of its channels.

        Raises:
            UnsupportedModel: outputs have another layout than latents.
        """
        output, latents = outputs[step].float(), self.latents[step]
        if output.ndim > 1 and output.shape[1] == 2 * latents.shape[1]:
            output = output[:, : latents.shape[1]]
        if output.shape != latents.shape:
            shapes = f"{list(output.shape[1:])} for latents of {list(latents.shape[1:])}"
            raise UnsupportedModel(f"no guidance can be planned: the denoiser answers {shapes}")
        return output

    def differences(self) -> list[Tensor]:
        """Conditional less unconditional output at each step, [n, ...] float32; zero where one branch ran alone."""
        return [
            self.guided(self.conditional, step) - self.guided(self.unconditional, step)
            if step in self.unconditional
            else torch.zeros_like(latents)
            for step, latents in enumerate(self.latents)
        ]


@dataclass(frozen=True)
class Tried:
    """What pictures by a plan are like, beside the same by full guidance.

    Attributes:
        error: relative error of the final latents, mean over pictures.
        deviations: likewise of the latents after each step.
        inner: [2 N, 2 N] as `quant.guidance.choose.corrected` takes it.
    """

    error: float
    deviations: tuple[float, ...]
    inner: Matrix


class Trials:
    """Runs some pictures over and over, `batch` at a time; `told` is called after each batch."""

    def __init__(
        self,
        components: Components,
        denoiser: nn.Module,
        defaults: Defaults,
        *,
        batch: int,
        told: Callable[[], None],
    ) -> None:
        self._components = components
        self._denoiser = denoiser
        self._defaults = defaults
        self._batch = batch
        self._told = told
        self._references: dict[int, list[Tensor]] = {}  # latents in full guidance, by the seed of a batch's first

    def record(self, subjects: Sequence[Subject], first: int) -> list[Tape]:
        """Runs pictures in full, the i-th from seed `first + i`, and remembers their latents; a tape for each batch.

        Raises:
            UnsupportedModel: the pipeline does not run both branches, or not in an order that a plan can serve.
        """
        tapes = []
        for numbers in batched_range(len(subjects), self._batch):
            chosen, seeds = subjects[numbers.start : numbers.stop], [first + number for number in numbers]
            tapes.append(self._run(chosen, seeds, None))
            self._references[seeds[0]] = tapes[-1].latents
        if not tapes[0].unconditional:
            at = f"guidance {self._defaults.guidance_scale:g}"
            raise UnsupportedModel(f"no guidance can be planned: at {at} the pipeline runs one branch alone")
        return tapes

    def probe(self, tape: Tape, subjects: Sequence[Subject], first: int, step: int, error: Tensor) -> list[Tensor]:
        """How the latents of the tape's first pictures change, after a step and all later ones, by an error [n, ...] of
        its difference: a list of [n, ...]. Steps before it are read from the tape.
        """
        latents: list[Tensor] = []

        def submit(call: DenoiserCall) -> Tensor:
            at = int(call.step[0])
            if at > step:
                return run_module(self._denoiser, call, None)
            return tape.read(call, error=error if at == step else None)

        def stepped(at: int, now: Tensor) -> None:
            if at >= step:
                latents.append(_own(now) - tape.latents[at][: len(subjects)])

        seeds = [first + number for number in range(len(subjects))]
        run_pipeline(self._components, subjects, seeds, self._defaults, submit, stepped=stepped)
        self._told()
        return latents

    def run(self, subjects: Sequence[Subject], first: int, plan: GuidancePlan) -> Tried:
        """Draws pictures that were recorded, by a plan.

        Raises:
            UnsupportedModel: the plan cannot serve the pipeline.
        """
        errors: list[Tensor] = []
        inner = np.zeros((2 * len(plan.steps),) * 2)
        for numbers in batched_range(len(subjects), self._batch):
            seeds = [first + number for number in numbers]
            reference = self._references[seeds[0]]
            tape = self._run(subjects[numbers.start : numbers.stop], seeds, plan)
            pairs = list(zip(tape.latents, reference, strict=True))
            errors.append(torch.stack([quant.relative_errors(now, truth) for now, truth in pairs]))
            moved = [now - truth for now, truth in pairs]
            inner += inner_products([*moved, *tape.differences()], norms(reference[-1]))
        deviations = torch.cat(errors, dim=1).mean(dim=1).tolist()
        return Tried(deviations[-1], tuple(deviations), inner / len(subjects))

    def _run(self, subjects: Sequence[Subject], seeds: Sequence[int], plan: GuidancePlan | None) -> Tape:
        tape = Tape()

        def submit(call: DenoiserCall) -> Tensor:
            output = run_module(self._denoiser, call, plan)
            tape.write(call, output)
            return output

        def stepped(at: int, now: Tensor) -> None:
            tape.latents.append(_own(now))

        done = run_pipeline(self._components, subjects, seeds, self._defaults, submit, stepped=stepped, plan=plan)
        self._told()
        if done.plan_unused:
            raise UnsupportedModel(f"no guidance can be planned: {done.plan_unused}")
        tape.timesteps = done.timesteps
        return tape


def _own(latents: Tensor) -> Tensor:
    return latents.detach().to("cpu", torch.float32, copy=True)
