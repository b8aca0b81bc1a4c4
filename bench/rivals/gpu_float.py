"""PyTorch in bfloat16 on a GPU, eager and compiled: the first rivals there. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bench.rivals import Runner, Work, safetensors_of
from bench.rivals.gpu_runner import GpuRunner, without_gpu
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class GpuFloat:
    """The float module, cast."""

    name: str
    compiled: bool
    note: str
    builds: bool = False

    def why_not(self) -> str | None:
        """Whether there is a GPU."""
        return without_gpu()

    def build(self, work: Work) -> None:
        """Nothing is to be made."""

    def open(self, work: Work) -> Runner:
        """The module, read, cast and moved."""
        module = channels_last(work.load().to(torch.bfloat16)).to("cuda")
        if self.compiled:
            module.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
        return GpuRunner(module, torch.bfloat16)

    def files(self, work: Work) -> list[Path]:
        """The float32 files."""
        return safetensors_of(work.source)


EAGER = GpuFloat("torch-bf16", False, "eager, channels last")
COMPILED = GpuFloat("torch-bf16-compiled", True, "max-autotune, fixed shapes, channels last")
