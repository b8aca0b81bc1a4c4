"""How much an error of the denoiser's output at each step moves the finished latents, by drawing pictures with one.

Must not know what errors are made of: a second denoiser makes them, one step at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from jobs.profile import Defaults
from pipelines.calibrate import run_pipeline
from pipelines.denoiser import DenoiserCall, run_module
from pipelines.families import Subject, UnsupportedModel
from pipelines.guided import branch_rows
from pipelines.load import Components

PROBES = 9
"""Steps that are put at fault, at most: evenly spread, the last among them. Between them influence is interpolated."""


@dataclass(frozen=True)
class Influence:
    """What errors of predictions do.

    Attributes:
        by_step: norm of what is moved for an error of norm 1 at each step, with the sign of its share in the error's
            own direction.
        guided: whether both branches of guidance ran.
        shape: of one picture's latents, without rows.
        size: mean squared norm of one picture's finished latents.
    """

    by_step: tuple[float, ...]
    guided: bool
    shape: tuple[int, ...]
    size: float


@dataclass
class _Tape:
    """A run: answers in the order of calls, the steps that they were at, and each branch's by step."""

    outputs: list[Tensor] = field(default_factory=list)
    branches: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)

    def write(self, call: DenoiserCall, output: Tensor) -> Tensor:
        """Keeps an answer, and gives it back."""
        self.outputs.append(output)
        for branch, rows in enumerate(branch_rows(call)):
            if len(rows):
                self.branches.setdefault(int(call.step[0]), {})[branch] = output[rows].float()
        return output

    def predicted(self, step: int, guidance: float) -> Tensor:
        """The guided prediction [n, ...] at a step, as far as it moves latents."""
        found = self.branches[step]
        conditional = found.get(0, found.get(1))
        assert conditional is not None
        whole = conditional if len(found) < 2 else found[1] + guidance * (conditional - found[1])
        return whole[:, : self.latents[step].shape[1]]


def influences(
    components: Components,
    denoiser: nn.Module,
    disturbed: nn.Module,
    subjects: Sequence[Subject],
    defaults: Defaults,
    *,
    seed: int = 0,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Influence:
    """Influence of each step, mean over some subjects that are drawn together, picture i from seed `seed + i`.

    Args:
        components: of the model.
        denoiser: its float module.
        disturbed: the same with the errors in question.
        subjects: what to draw; a few.
        defaults: at which settings.
        seed: of the first picture.
        told: how many runs are done, of how many.

    Raises:
        UnsupportedModel: the denoiser's output has another layout than latents, or errors of it do nothing.
    """
    runs = _Runs(components, denoiser, disturbed, subjects, defaults, [seed + i for i in range(len(subjects))])
    whole = runs.draw({})
    count = len(whole.latents)
    if whole.predicted(0, defaults.guidance_scale).shape != whole.latents[0].shape:
        raise UnsupportedModel("no recipe can be tuned: the denoiser's output has another layout than latents")
    probed = sorted({round(place) for place in np.linspace(0, count - 1, min(PROBES, count))})
    found: dict[int, float] = {}
    for number, step in enumerate(probed):
        told(number, len(probed))
        found[step] = _moved(whole, runs.draw({step: whole}), step, defaults.guidance_scale)
    told(len(probed), len(probed))
    latents = whole.latents[-1].double().flatten(1)
    return Influence(
        by_step=_between(found, count),
        guided=len(whole.branches[0]) > 1,
        shape=tuple(whole.latents[-1].shape[1:]),
        size=float(latents.square().sum(1).mean()),
    )


@dataclass(frozen=True)
class _Runs:
    components: Components
    denoiser: nn.Module
    disturbed: nn.Module
    subjects: Sequence[Subject]
    defaults: Defaults
    seeds: Sequence[int]

    def draw(self, at_fault: Mapping[int, _Tape]) -> _Tape:
        """A run with the disturbed module at some step; what a tape knows before that step is not computed again."""
        tape, place = _Tape(), 0

        def submit(call: DenoiserCall) -> Tensor:
            nonlocal place
            place += 1
            step = int(call.step[0])
            if step in at_fault:
                return tape.write(call, run_module(self.disturbed, call, None))
            for first, known in at_fault.items():
                if step < first:
                    return tape.write(call, known.outputs[place - 1].clone())
            return tape.write(call, run_module(self.denoiser, call, None))

        def stepped(step: int, latents: Tensor) -> None:
            tape.latents.append(latents.detach().to("cpu", torch.float32, copy=True))

        run_pipeline(self.components, self.subjects, self.seeds, self.defaults, submit, stepped=stepped)
        return tape


def _moved(whole: _Tape, wrong: _Tape, step: int, guidance: float) -> float:
    error = (wrong.predicted(step, guidance) - whole.predicted(step, guidance)).double().flatten(1).cpu()
    moved = (wrong.latents[-1] - whole.latents[-1]).double().flatten(1)
    sizes = error.norm(dim=1)
    if not bool((sizes > 0).any()):
        return 0.0
    kept = sizes > 0
    ratio = float((moved.norm(dim=1)[kept] / sizes[kept]).square().mean().sqrt())
    return math.copysign(ratio, float((moved * error).sum()))


def _between(found: Mapping[int, float], count: int) -> tuple[float, ...]:
    steps = sorted(found)
    return tuple(np.interp(range(count), steps, [found[step] for step in steps]).tolist())
