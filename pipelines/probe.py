"""How far a denoiser's single answers are from float's, on float's own way: no later call has amplified the error.

Must not know jobs, or what a denoiser is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.denoiser import Denoiser, DenoiserCall
from quant.recipe_parts import FloatIn

BROKEN = 1e3
"""What NaN and infinity count as: worse than any number, and a number."""


class CallErrors:
    """Relative L2 errors of answers, by step of the scheduler and picture; all calls of a step count as one.

    Rows of a call are the pictures in order, once for each branch.
    """

    def __init__(self, pictures: int) -> None:
        self._pictures = pictures
        self._squares: dict[int, tuple[Tensor, Tensor]] = {}  # by step: of differences and of truths, [pictures]

    def add(self, call: DenoiserCall, truth: Tensor, answer: Tensor) -> None:
        """Counts an answer [B, ...] to a call whose float answer is `truth` [B, ...]."""
        step = int(call.step[0])
        nothing = torch.zeros(self._pictures, dtype=torch.float64)
        different, whole = self._squares.get(step, (nothing, nothing))
        self._squares[step] = (different + self._of_pictures(answer - truth), whole + self._of_pictures(truth))

    def _of_pictures(self, values: Tensor) -> Tensor:
        rows = values.detach().double().cpu().flatten(1).square().sum(1)
        return rows.reshape(-1, self._pictures).sum(0)

    @property
    def errors(self) -> Tensor:
        """[pictures, steps] float64, in the steps' order."""
        columns = [different / whole.clamp(min=1e-300) for _, (different, whole) in sorted(self._squares.items())]
        found = torch.stack(columns, dim=1).sqrt()
        return found.nan_to_num(nan=BROKEN, posinf=BROKEN)


class Probed:
    """The float denoiser, whose calls others answer too: what they say is compared and goes nowhere else.

    Others answer every call in full, without what a guidance plan would leave out.
    """

    backend = "torch"
    guidance = None
    precision = None
    decode_in: FloatIn = "float32"

    def __init__(self, truth: Denoiser, others: Mapping[str, Denoiser], pictures: int) -> None:
        self._truth = truth
        self._others = others
        self.errors = {name: CallErrors(pictures) for name in others}
        self.name = truth.name
        self.weights_bytes = truth.weights_bytes
        self.fallbacks = 0

    def run(self, call: DenoiserCall) -> Tensor:
        """Float's answer."""
        truth = self._truth.run(call)
        for name, other in self._others.items():
            self.errors[name].add(call, truth, other.run(replace(call, pattern=0)))
        return truth
