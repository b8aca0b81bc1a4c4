"""The reference backend: quantized layers in float arithmetic, by torch. Slow, and the definition of correct.

Each row runs alone: integer rounding turns the last bit of a float into a whole step of a grid, so a row that shared
its matrix products with others could come out differently. Alone, it cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quant.backends.call import Call
from quant.backends.moment import run_timed
from quant.errors import BackendError


class ReferenceExecutable:
    """A module of quantized layers, run row by row."""

    fallbacks = 0

    def __init__(self, module: nn.Module) -> None:
        self._module: nn.Module | None = module.eval().requires_grad_(False)
        tensors = (*module.parameters(), *module.buffers())
        self._bytes = sum(tensor.nbytes for tensor in tensors)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters and buffers."""
        return self._bytes if self._module is not None else 0

    def run(self, call: Call) -> Tensor:
        """The module's output [B, ...], each row computed alone.

        Raises:
            BackendError: the executable was closed.
        """
        if self._module is None:
            raise BackendError("the reference executable was closed")
        with torch.inference_mode():
            single = (call.take(torch.tensor([row])) for row in range(call.count))
            rows = [run_timed(self._module, one.tensors(), one.constants) for one in single]
            return torch.cat(rows)

    def close(self) -> None:
        """Lets go of the module."""
        self._module = None
