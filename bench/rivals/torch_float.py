"""PyTorch as it comes, in float32 and bfloat16, eager and compiled: rivals. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.rivals import AtOpening, Runner, Work
from bench.rivals.torch_runner import TorchRunner, without_compiler
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class TorchFloat(AtOpening):
    """PyTorch in one number format; compiled by inductor for fixed shapes, at the first call of each."""

    name: str
    dtype: torch.dtype
    note: str
    compiled: bool = False

    def why_not(self) -> str | None:
        """Whether there is a compiler, where it needs one."""
        return without_compiler() if self.compiled else None

    def open(self, work: Work) -> Runner:
        """The module, read, cast, and to be compiled."""
        module = channels_last(work.load().to(self.dtype))
        if self.compiled:
            module.compile(dynamic=False)
        return TorchRunner(module, self.dtype)


FP32 = TorchFloat("torch-fp32", torch.float32, "eager, channels last")
BF16 = TorchFloat("torch-bf16", torch.bfloat16, "eager, channels last; reads float32 files and casts")
BF16_COMPILED = TorchFloat(
    "torch-bf16-compiled", torch.bfloat16, "torch.compile, fixed shapes; reads float32 files and casts", compiled=True
)
