"""Single products on a GPU: ours, rounding of inputs included, beside torch's. Must not know models.

`linear-1024x1152x4608` is 1024 rows from 1152 to 4608 channels; `conv-320x640x32` a 3x3 convolution from 320 to 640
channels on two pictures of 32x32.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from bench.gpu_time import Work, microseconds
from bench.table import Found
from quant.kernels.forms import NOTHING_BEFORE, After
from quant.kernels.fp8_linear import fp8_linear, to_fp8, why_not
from quant.kernels.int8_conv import Window, int8_conv
from quant.kernels.linear import int4_linear, int8_linear, pack_rows
from quant.kernels.quantize import quantize_scaled, quantize_tokens

REPEATS: Final = 20


def compare(shape: str, device: torch.device, rounds: int, repeats: int = REPEATS) -> Found:
    """Microseconds of each way to compute a product, medians of interleaved rounds after one that does not count.

    Raises:
        ValueError: no such shape.
    """
    ways, left = ways_of(shape, device)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            took = microseconds(work, repeats if number else 1)
            if number:
                found[name].append(took)
    return {"shape": shape, "microseconds": {name: statistics.median(each) for name, each in found.items()}, **left}


def ways_of(shape: str, device: torch.device) -> tuple[Mapping[str, Work], Found]:
    """What computes a product of that shape, by name; and what does not, with the reason."""
    parts = re.fullmatch(r"(linear|conv)-(\d+)x(\d+)x(\d+)", shape)
    if parts is None:
        raise ValueError(f"no shape {shape!r}; linear-ROWSxINxOUT or conv-INxOUTxSIDE")
    sizes = (int(parts[2]), int(parts[3]), int(parts[4]))
    return (_linears if parts[1] == "linear" else _convs)(*sizes, device)


def _linears(rows: int, depth: int, columns: int, device: torch.device) -> tuple[Mapping[str, Work], Found]:
    x = _random(rows, depth, device=device)
    weight = torch.randint(-127, 128, (columns, depth), device=device, dtype=torch.int8)
    small, scales = pack_rows(weight.clamp(-8, 7)), torch.rand(columns, device=device)
    wide, bias = weight.to(torch.bfloat16), scales.to(torch.bfloat16)
    rounded, row_scale = quantize_tokens(x[None], 128, 255)
    follows = After(row_scale.flatten(), bias=scales)

    def whole(product: Callable[..., Tensor], held: Tensor) -> Tensor:
        integers, own = quantize_tokens(x[None], 128, 255, NOTHING_BEFORE)
        return product(integers[0], held, scales, After(own.flatten(), bias=scales), torch.bfloat16)

    ways: dict[str, Work] = {
        "torch bfloat16": lambda: functional.linear(x, wide, bias),
        "ours int8": lambda: whole(int8_linear, weight),
        "ours int8, product alone": lambda: int8_linear(rounded[0], weight, scales, follows, torch.bfloat16),
        "ours int4": lambda: whole(int4_linear, small),
    }
    left: Found = {}
    if device.type == "cuda" and rows > 16 and depth % 8 == 0 and columns % 8 == 0:
        ways["torch._int_mm, product alone"] = lambda: torch._int_mm(rounded[0], weight.t())
    reason = why_not(columns, depth, device)
    if reason:
        left["ours fp8"] = reason
    else:
        values = to_fp8(weight)
        ways["ours fp8"] = lambda: fp8_linear(x, values, scales, scales, torch.bfloat16)
    return ways, left


def _convs(inputs: int, outputs: int, side: int, device: torch.device) -> tuple[Mapping[str, Work], Found]:
    x = _random(2, inputs, side, side, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (outputs, 3, 3, inputs), device=device, dtype=torch.int8)
    scales, one = torch.rand(outputs, device=device), torch.full((1,), 0.02, device=device)
    wide = weight.permute(0, 3, 1, 2).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    bias = scales.to(torch.bfloat16)

    def ours() -> Tensor:
        rows = quantize_scaled(x.flatten(2).transpose(1, 2), 1.0 / one, 128, 255)
        picture = rows.view(2, side, side, inputs)
        return int8_conv(picture, weight, scales, 0, Window(padding=(1, 1)), After(one, bias=scales), torch.bfloat16)

    return {"torch bfloat16": lambda: functional.conv2d(x, wide, bias, padding=1), "ours int8": ours}, {}


def _random(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)
