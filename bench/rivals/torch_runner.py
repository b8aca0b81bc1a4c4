"""Runs a torch module on calls, in the number format of its weights. Must not know which rival made the module."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
from torch import Tensor, nn

import quant

COMPILERS = ("g++", "clang++", "c++")


class TorchRunner:
    """A module on a device that answers calls of CPU tensors; pictures lie channels last, which is faster."""

    def __init__(self, module: nn.Module, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self._module: nn.Module | None = module.eval()
        self._dtype, self._device = dtype, device

    def run(self, call: quant.Call) -> Tensor:
        """The module's output [B, ...] float32 on the CPU.

        Raises:
            RuntimeError: it was closed.
        """
        if self._module is None:
            raise RuntimeError("the runner was closed")
        rows, shared = ({name: self._as_taken(one) for name, one in part.items()} for part in (call.rows, call.shared))
        with torch.no_grad():  # tensor subclasses of rivals do not all work in inference mode
            output = quant.call_module(self._module, replace(call, rows=rows, shared=shared))
        return output.float().cpu().contiguous()

    def close(self) -> None:
        """Lets go of the module."""
        self._module = None

    def _as_taken(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.ndim > 1:  # timesteps stay as they are: half a number is not enough
            tensor = tensor.to(self._dtype)
        tensor = tensor.to(self._device)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def without_gpu() -> str | None:
    """Why nothing runs on a GPU here; None if there is one."""
    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def without_compiler() -> str | None:
    """Why torch.compile cannot make code for CPUs here; None if it can."""
    if any(shutil.which(name) for name in COMPILERS):
        return None
    return f"torch.compile needs a C++ compiler on PATH, and none of {', '.join(COMPILERS)} is there"
