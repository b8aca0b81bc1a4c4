"""What runs of a denoiser tell of guidance: inner products of differences, and what wrong differences do to latents.

Tensor work. Must not know who runs the denoiser, or what is chosen by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from quant.errors import CalibrationError
from quant.guidance.choose import Dynamics, Matrix


def inner_products(vectors: Sequence[Tensor], sizes: Tensor) -> Matrix:
    """[V, V] float64: inner products of V tensors [n, ...] for each of n pictures, over its size [n] squared; summed.

    Raises:
        CalibrationError: NaN or infinity.
    """
    total = np.zeros((len(vectors), len(vectors)))
    for picture, size in enumerate(sizes.tolist()):
        flat = torch.stack([vector[picture].flatten().double().cpu() / size for vector in vectors])
        total += (flat @ flat.T).numpy()
    if not np.isfinite(total).all():
        raise CalibrationError("the model produced NaN or infinity: no guidance can be planned by it")
    return total


def norms(tensor: Tensor) -> Tensor:
    """[n] float64 L2 norms of n pictures' tensors [n, ...]."""
    return tensor.flatten(1).double().square().sum(dim=1).sqrt().cpu()


class Responses:
    """What an error of the difference at a step does to the latents after it and all later steps: from probes of some
    steps, and by the nearest probe for others.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._follows: dict[int, list[float]] = {}
        self._final: dict[int, float] = {}
        self._stray: dict[int, float] = {}

    def add(self, step: int, error: Tensor, changes: Sequence[Tensor]) -> None:
        """One probe: `error` [n, ...] of the difference at a step changed the latents after it, and after each later
        step, by `changes`, of the same shape.

        Raises:
            CalibrationError: it changed nothing, or to NaN or infinity.
        """
        flat, after = error.flatten().double().cpu(), [change.flatten().double().cpu() for change in changes]
        own = float(after[0].norm())
        if not own or not all(bool(torch.isfinite(change).all()) for change in after):
            raise CalibrationError(f"the guidance of step {step} has no, or no finite, effect on the latents")
        self._follows[step] = [float(change @ flat / (flat @ flat)) for change in after]
        self._final[step] = float(after[-1].norm()) / own
        if len(after) > 1:
            along = float(after[1] @ after[0] / (after[0] @ after[0]))
            self._stray[step] = float((after[1] - along * after[0]).norm()) / own

    def dynamics(self, gram: Matrix) -> Dynamics:
        """All of it, with differences' inner products [N, N].

        Raises:
            CalibrationError: no step was probed: no difference was found that could be wrong.
        """
        if not self._follows:
            raise CalibrationError("both branches answer alike at all steps: guidance changes nothing")
        response = np.zeros((self._steps, self._steps))
        for step in range(self._steps):
            told = self._follows[_nearest(self._follows, step)]
            for lag in range(self._steps - step):
                response[step + lag, step] = told[min(lag, len(told) - 1)]
        stray = [self._stray[_nearest(self._stray, step)] if self._stray else 0.0 for step in range(self._steps)]
        final = [self._final[_nearest(self._final, step)] for step in range(self._steps)]
        return Dynamics(gram, response, np.array(stray), np.array(final))


def _nearest(known: Mapping[int, object], step: int) -> int:
    return min(known, key=lambda one: (abs(one - step), one))
