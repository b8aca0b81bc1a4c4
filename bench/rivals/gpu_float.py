"""PyTorch in bfloat16 on a GPU, eager and compiled: the first rivals there. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.rivals import AtOpening, Runner, Work
from bench.rivals.torch_runner import TorchRunner, without_gpu
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class GpuFloat(AtOpening):
    """The float module, cast."""

    name: str
    compiled: bool
    note: str

    def why_not(self) -> str | None:
        """Whether there is a GPU."""
        return without_gpu()

    def open(self, work: Work) -> Runner:
        """The module, read, cast and moved."""
        module = channels_last(work.load().to(torch.bfloat16)).to("cuda")
        if self.compiled:
            module.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
        return TorchRunner(module, torch.bfloat16, "cuda")


EAGER = GpuFloat("torch-bf16", False, "eager, channels last")
COMPILED = GpuFloat("torch-bf16-compiled", True, "max-autotune, fixed shapes, channels last")
