"""The reference backend: quantized layers in float arithmetic, by torch. Slow, and the definition of correct.

Each row runs alone: integer rounding turns the last bit of a float into a whole step of a grid, so a row that shared
its matrix products with others could come out differently. Alone, it cannot. Rows that share attention run as a pair.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from quant.backends.call import Call, run_in_parts
from quant.errors import BackendError
from quant.guidance.share import NO_SHARING, Patterns, run_shared


class ReferenceExecutable:
    """A module of quantized layers, run row by row. Calls take turns: its layers share one moment."""

    fallbacks = 0

    def __init__(self, module: nn.Module, patterns: Patterns = NO_SHARING) -> None:
        self._module: nn.Module | None = module.eval().requires_grad_(False)
        self._patterns = patterns
        tensors = (*module.parameters(), *module.buffers())
        self._bytes = sum(tensor.nbytes for tensor in tensors)
        self._turn = threading.Lock()

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters and buffers."""
        return self._bytes if self._module is not None else 0

    def run(self, call: Call) -> Tensor:
        """The module's output [B, ...], each row, or pair of rows that share attention, computed alone.

        Raises:
            BackendError: the executable was closed, or rows cannot share attention as the call's pattern says.
        """
        with self._turn, torch.inference_mode():
            module = self._module  # closing does not wait for the call that runs
            if module is None:
                raise BackendError("the reference executable was closed")
            return run_in_parts(call, 1, lambda part: run_shared(module, part, self._patterns))

    def close(self) -> None:
        """Lets go of the module."""
        self._module = None
