"""torchao's int8 of linears, dynamic scale for each token: a rival, eager and compiled. Must not know what is measured.

Made at every opening from the float32 files, which is torchao's usual way. Convolutions stay float32: it has no int8
form of them on CPUs. float32 in and out, since that was the faster base on CPUs when both were measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.rivals import AtOpening, Runner, Work, missing
from bench.rivals.torch_runner import TorchRunner, without_compiler
from pipelines.denoiser import channels_last


@dataclass(frozen=True)
class TorchaoInt8(AtOpening):
    """`quantize_` by `Int8DynamicActivationInt8WeightConfig`."""

    name: str
    compiled: bool
    note: str

    def why_not(self) -> str | None:
        """Whether it is installed, and a compiler where it needs one."""
        return missing("torchao", "torchao") or (without_compiler() if self.compiled else None)

    def open(self, work: Work) -> Runner:
        """The module, read and quantized."""
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        module = channels_last(work.load())
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        if self.compiled:
            module.compile(dynamic=False)
        return TorchRunner(module)


EAGER = TorchaoInt8("torchao-int8", False, "linears int8, a scale for each token; convolutions float32; eager")
COMPILED = TorchaoInt8("torchao-int8-compiled", True, "as torchao-int8, compiled with fixed shapes")
