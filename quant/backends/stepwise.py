"""An executable of two: a more exact one for the rows at a plan's precise steps, and one for all others.

Must not know how either computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.backends.call import Call, Executable
from quant.precision import PreciseSteps


class StepwiseExecutable:
    """Rows go to one of two executables by their clocks alone, so that both branches of a step go to the same."""

    def __init__(self, coarse: Executable, precise: Executable, steps: PreciseSteps) -> None:
        self.coarse, self.precise, self.steps = coarse, precise, steps

    @property
    def weights_bytes(self) -> int:
        """Bytes of both."""
        return self.coarse.weights_bytes + self.precise.weights_bytes

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table knew."""
        return self.coarse.fallbacks + self.precise.fallbacks

    def run(self, call: Call) -> Tensor:
        """The denoiser's output [B, ...] float32, each row by the executable that its step is for.

        Raises:
            BackendError: the executable was closed, or cannot run the call.
        """
        precise = self.steps.rows(call.clock)
        if bool(precise.all()):
            return self.precise.run(call)
        if not bool(precise.any()):
            return self.coarse.run(call)
        index = torch.cat([(~precise).nonzero().flatten(), precise.nonzero().flatten()])
        coarse, fine = torch.split(index, [len(index) - int(precise.sum()), int(precise.sum())])
        together = torch.cat([self.coarse.run(call.take(coarse)), self.precise.run(call.take(fine))])
        return together[torch.argsort(index)]

    def close(self) -> None:
        """Lets go of both."""
        self.coarse.close()
        self.precise.close()
