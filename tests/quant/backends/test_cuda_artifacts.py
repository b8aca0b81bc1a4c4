"""Artifacts of tiny models of diffusers, rotated and in time, by the cuda backend as by the reference backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import quant
from quant.backends.cuda import CudaExecutable
from quant.backends.cuda_layers import KernelLinear
from quant.backends.moment import TimedExecutable
from quant.rotation.attach import transformed_layers
from tests.quant.rotation.test_artifacts import GREEDY, HADAMARD, TFMQ, Made, make

TOKENS = '[activations]\ngrain = "token"\n'
W4 = "[weights]\nbits = 4\n"
KINDS = {
    "PixArt, block Hadamard, tokens": ("pixart-sigma", HADAMARD + TOKENS),
    "PixArt, greedy rotation, tokens, 4-bit weights": ("pixart-sigma", GREEDY + TOKENS + W4),
    "UNet, block Hadamard, scales and features in time": ("unet", HADAMARD + TFMQ),
}


def run(made: Made, backend: str, **options: Any) -> tuple[torch.Tensor, CudaExecutable | None]:
    chosen = quant.Options(made.folder.parent / "cache", threads=1, **options)
    executable = quant.open_backend(backend, made.folder, made.manifest, made.empty, chosen)
    inner = executable.executable if isinstance(executable, TimedExecutable) else executable
    return executable.run(made.call.take(torch.tensor([0, 3]))), inner if isinstance(inner, CudaExecutable) else None


@pytest.mark.parametrize(("name", "text"), KINDS.values(), ids=KINDS)
def test_it_agrees_with_the_reference(name: str, text: str, tmp_path: Path) -> None:
    made = make(name, text, tmp_path)
    expected, _ = run(made, "reference")
    found, fast = run(made, "cuda")
    assert fast is not None and len(fast.kernels) > 20
    stepwise = {layer for layer, form in made.manifest.forms.items() if form.kind == "stepwise"}
    assert set(fast.float_layers) == stepwise and bool(stepwise) == (name == "unet")
    assert quant.relative_error(found, expected) < 0.02


def test_models_of_diffusers_run_in_bfloat16(tmp_path: Path) -> None:
    made = make("pixart-sigma", HADAMARD + TOKENS, tmp_path)
    found, _ = run(made, "cuda", gpu_dtype=torch.bfloat16)
    assert quant.relative_error(found, run(made, "reference")[0]) < 0.08


def test_linears_compute_their_block_rotation_themselves(tmp_path: Path) -> None:
    made = make("pixart-sigma", HADAMARD + TOKENS, tmp_path)
    _, fast = run(made, "cuda")
    assert fast is not None and fast._module is not None
    assert set(transformed_layers(fast._module)) == {"pos_embed.proj"}  # a convolution
    rotated = [part for part in fast._module.modules() if isinstance(part, KernelLinear) and part.signs is not None]
    assert len(rotated) == len(made.manifest.transforms) - 1 > 10
