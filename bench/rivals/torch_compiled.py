"""PyTorch compiled by inductor, in bfloat16: a rival. Must not know what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bench.rivals import Runner, Work, safetensors_of
from bench.rivals.torch_runner import TorchRunner, without_compiler
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class TorchCompiled:
    """`torch.compile` of fixed shapes; code is made at the first call of a shape."""

    name: str
    dtype: torch.dtype
    note: str
    builds: bool = False

    def why_not(self) -> str | None:
        """Whether there is a compiler."""
        return without_compiler()

    def build(self, work: Work) -> None:
        """Nothing is to be made: inductor keeps its own cache."""

    def open(self, work: Work) -> Runner:
        """The module, read, cast, and to be compiled."""
        module = channels_last(work.load().to(self.dtype))
        module.compile(dynamic=False)
        return TorchRunner(module, self.dtype)

    def files(self, work: Work) -> list[Path]:
        """The float32 files."""
        return safetensors_of(work.source)


BF16 = TorchCompiled(
    "torch-bf16-compiled", torch.bfloat16, "torch.compile, fixed shapes; reads float32 files and casts"
)
