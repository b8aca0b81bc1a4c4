"""PyTorch as it comes, eager, in float32 and in bfloat16: the first rivals. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bench.rivals import Runner, Work, safetensors_of
from bench.rivals.torch_runner import TorchRunner
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class TorchFloat:
    """Eager PyTorch in one number format; weights are read from the float32 files and cast."""

    name: str
    dtype: torch.dtype
    note: str
    builds: bool = False

    def why_not(self) -> str | None:
        """It always can."""
        return None

    def build(self, work: Work) -> None:
        """Nothing is to be made."""

    def open(self, work: Work) -> Runner:
        """The module, read and cast."""
        return TorchRunner(channels_last(work.load().to(self.dtype)), self.dtype)

    def files(self, work: Work) -> list[Path]:
        """The float32 files."""
        return safetensors_of(work.source)


FP32 = TorchFloat("torch-fp32", torch.float32, "eager, channels last")
BF16 = TorchFloat("torch-bf16", torch.bfloat16, "eager, channels last; reads float32 files and casts")
