"""Runs a torch module on the GPU, as GPU rivals do. Must not know which rival made the module."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import quant


def without_gpu() -> str | None:
    """Why nothing runs on a GPU here; None if there is one."""
    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


class GpuRunner:
    """A module on the GPU that answers calls of CPU tensors; it takes `dtype`, timesteps as they are."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module: nn.Module | None = module.eval()
        self._dtype = dtype

    def run(self, call: quant.Call) -> Tensor:
        """The module's output [B, ...] float32 on the CPU.

        Raises:
            RuntimeError: it was closed.
        """
        if self._module is None:
            raise RuntimeError("the runner was closed")
        rows, shared = ({name: self._there(one) for name, one in part.items()} for part in (call.rows, call.shared))
        with torch.no_grad():  # tensor subclasses of rivals do not all work in inference mode
            return quant.call_module(self._module, replace(call, rows=rows, shared=shared)).float().cpu()

    def close(self) -> None:
        """Lets go of the module."""
        self._module = None

    def _there(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor = tensor.to(self._dtype)
        moved = tensor.to("cuda")
        return moved.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else moved
