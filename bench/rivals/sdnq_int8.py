"""SDNQ's int8 products, through diffusers: a rival where the user installed it. Must not know what is measured.

SDNQ is GPL-3.0: it is never a dependency, and nothing here imports it; diffusers does, by its `SDNQConfig`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from bench.rivals import AtOpening, Runner, Work, missing
from bench.rivals.torch_runner import TorchRunner


@dataclass(frozen=True)
class SdnqInt8(AtOpening):
    """`from_pretrained(quantization_config=SDNQConfig(...))`, at every opening from the float32 files."""

    name: str
    note: str

    def why_not(self) -> str | None:
        """Whether the user installed it."""
        return missing("sdnq", "sdnq (GPL-3.0, yours to choose)")

    def open(self, work: Work) -> Runner:
        """The module, read and quantized.

        Raises:
            RuntimeError: the module is none that diffusers reads from a folder.
        """
        # its products by OpenVINO, which it takes where that is installed, were slower than by torch when measured
        os.environ.setdefault("SDNQ_USE_OPENVINO_MM", "0")
        from diffusers import SDNQConfig

        if work.source is None:
            raise RuntimeError("SDNQ is reached through diffusers, which reads models from folders only")
        kind = type(work.empty())
        options = SDNQConfig(weights_dtype="int8", use_quantized_matmul=True)
        module = kind.from_pretrained(work.source, quantization_config=options, local_files_only=True)  # type: ignore[attr-defined]
        return TorchRunner(module.requires_grad_(False))


INT8 = SdnqInt8("sdnq-int8", "linears, int8 products with a scale for each token; convolutions by float products")
