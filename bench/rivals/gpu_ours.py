"""What this product serves on a GPU, behind the rivals' door: the same artifacts, run by the cuda backend.

Without a GPU it runs in Triton's interpreter where the environment asks for that, which shows that it works and
nothing else. Must not know what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import quant
from bench.rivals import Work
from bench.rivals.ours import TFMQ_W4A8, TFMQ_W8A8, TRDQ_W8A8, Ours, cache_of, sha256_of


@dataclass(frozen=True)
class GpuOurs:
    """An artifact of `bench.rivals.ours`."""

    name: str
    artifact: Ours
    products: Literal["int8", "fp8", "measured"]
    note: str
    fuses: bool = True
    builds: bool = True

    def why_not(self) -> str | None:
        """What the cuda backend says."""
        try:
            from quant.backends.cuda import device_at_hand

            device_at_hand()
        except (ModuleNotFoundError, quant.BackendError) as error:
            return str(error)
        return None

    def build(self, work: Work) -> None:
        """Calibrates on the CPU, at the size that serves all."""
        self.artifact.build(work)

    def open(self, work: Work) -> quant.Executable:
        """The artifact, verified and opened; the rest of the model in bfloat16, eager."""
        home = work.home or work
        manifest = quant.read_manifest(home.folder)
        quant.verify(home.folder, manifest, sha256_of(home))
        options = quant.Options(
            cache_of(home), gpu_dtype=torch.bfloat16, gpu_products=self.products, gpu_fuses=self.fuses
        )
        return quant.open_backend("cuda", home.folder, manifest, home.empty, options)

    def files(self, work: Work) -> list[Path]:
        """The artifact."""
        return self.artifact.files(work)


TFMQ_INT8 = GpuOurs("cuda-tfmq-w8a8", TFMQ_W8A8, "int8", "eager, the rest bfloat16")
TFMQ_APART = GpuOurs(
    "cuda-tfmq-w8a8-apart", TFMQ_W8A8, "int8", "norms, modulations, gates and residuals by torch", fuses=False
)
TFMQ_MEASURED = GpuOurs("cuda-tfmq-w8a8-measured", TFMQ_W8A8, "measured", "int8 or fp8 by layer, the faster of both")
TRDQ_INT8 = GpuOurs("cuda-trdq-w8a8", TRDQ_W8A8, "int8", "eager, the rest bfloat16")
TFMQ_W4 = GpuOurs("cuda-tfmq-w4a8", TFMQ_W4A8, "int8", "eager, weights two to a byte, the rest bfloat16")
