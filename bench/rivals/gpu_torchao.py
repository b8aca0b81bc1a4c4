"""torchao's int8 and fp8 of linears on a GPU, a scale for each token: a rival. Must not know what is measured.

int8 runs compiled and eager: people quote how slow the latter is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from bench.rivals import AtOpening, Runner, Work, missing
from bench.rivals.torch_runner import TorchRunner, without_gpu
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class GpuTorchao(AtOpening):
    """`quantize_` of the bfloat16 module."""

    name: str
    kind: Literal["int8", "fp8"]
    compiled: bool
    note: str

    def why_not(self) -> str | None:
        """Whether there is a GPU, fp8 on it where it is needed, and torchao."""
        reason = without_gpu() or missing("torchao", "torchao")
        if reason is None and self.kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
            return f"{torch.cuda.get_device_name()} has no fp8"
        return reason

    def open(self, work: Work) -> Runner:
        """The module, read, moved and quantized."""
        from torchao import quantization

        if self.kind == "fp8":
            config = quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerRow())
        else:
            config = quantization.Int8DynamicActivationInt8WeightConfig()
        module = channels_last(work.load().to(torch.bfloat16)).to("cuda")
        quantization.quantize_(module, config)
        if self.compiled:
            module.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
        return TorchRunner(module, torch.bfloat16, "cuda")


INT8 = GpuTorchao("torchao-int8-compiled", "int8", True, "linears int8, a scale for each token; the rest bfloat16")
INT8_EAGER = GpuTorchao("torchao-int8", "int8", False, "as torchao-int8-compiled, not compiled")
FP8 = GpuTorchao("torchao-fp8-compiled", "fp8", True, "linears fp8, a scale for each row; the rest bfloat16")
