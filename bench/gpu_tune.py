"""Measures which tiles are fastest for each product on the GPU at hand, and writes the table that the backend reads.

Must not know models. Candidates that the device has no room for are left out and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import triton
from triton.runtime.errors import OutOfResources

from bench.gpu_time import Work, microseconds, name_of
from quant.kernels import tuning
from quant.kernels.forms import After
from quant.kernels.int8_conv import Window, int8_conv
from quant.kernels.linear import int4_linear, int8_linear, pack_rows
from quant.kernels.tuning import Config, Entry, Table

LINEARS: Final = tuple(
    (rows, columns, depth)
    for rows in (16, 128, 1024, 4096, 16384)
    for columns, depth in (
        (320, 320),
        (1152, 1152),
        (1152, 4608),
        (3072, 3072),
        (3072, 12288),
        (4608, 1152),
        (12288, 3072),
    )
)
CONVS: Final = ((512, 1280, 1280), (2048, 640, 640), (8192, 320, 320), (8192, 640, 320))
"""Rows, outputs and inputs of 3x3 convolutions."""

REPEATS: Final = 10
SHARED: Final = 227 * 1024
"""Bytes of shared memory of a program on an H100; devices with less refuse, and that is counted."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kernel and the product [m, k] x [k, n] that it is measured on."""

    kernel: str
    m: int
    n: int
    k: int


def shapes() -> list[Shape]:
    """All that is measured."""
    found = [Shape(kernel, *sizes) for kernel in ("int8_linear", "int4_linear") for sizes in LINEARS]
    return found + [Shape("int8_conv", rows, outputs, 9 * inputs) for rows, outputs, inputs in CONVS]


def candidates(shape: Shape) -> Iterator[Config]:
    """Tiles that may be fast for a product and fit an H100."""
    depths = (64, 128) if shape.kernel == "int8_linear" else (32, 64, 128)
    most = 16 if shape.m <= 16 else 256
    for rows, columns, depth, warps, stages in itertools.product(
        (16, 64, 128, 256), (64, 128, 256), depths, (4, 8), (3, 4)
    ):
        loads = rows * depth * (2 if shape.kernel == "int4_linear" else 1) + columns * depth
        registers = rows * columns / (32 * warps)
        if rows <= most and loads * stages <= SHARED and registers <= 160 and (rows > 16 or warps == 4):
            yield Config(rows=rows, columns=columns, depth=depth, group=8, warps=warps, stages=stages)


def work_of(shape: Shape, device: torch.device) -> Work:
    """The kernel on random integers of that shape."""
    scales = torch.rand(shape.n, device=device)
    if shape.kernel == "int8_conv":
        inputs = shape.k // 9
        x = _integers(1, 1, shape.m, inputs, device=device)
        weight = _integers(shape.n, 3, 3, inputs, device=device)
        return lambda: int8_conv(x, weight, scales, 0, Window(padding=(1, 1)), dtype=torch.bfloat16)
    rows, held = _integers(shape.m, shape.k, device=device), _integers(shape.n, shape.k, device=device)
    after = After(torch.rand(shape.m, device=device), bias=scales)
    if shape.kernel == "int4_linear":
        packed = pack_rows(held.clamp(-8, 7))
        return lambda: int4_linear(rows, packed, scales, after, torch.bfloat16)
    return lambda: int8_linear(rows, held, scales, after, torch.bfloat16)


def best(
    shape: Shape, configs: Sequence[Config], device: torch.device, timer: Callable[[Work], float]
) -> tuple[Entry | None, int]:
    """The fastest of the configs, and how many the device had no room for."""
    work, refused = work_of(shape, device), 0
    found: list[tuple[float, Config]] = []
    for config in configs:
        entry = Entry(kernel=shape.kernel, m=shape.m, n=shape.n, k=shape.k, config=config)
        tuning.activate(Table(device="", measured=False, note="a candidate", entries=(entry,)))
        try:
            work()  # compiles
            found.append((timer(work), config))
        except OutOfResources:
            refused += 1
    tuning.activate(None)
    if not found:
        return None, refused
    took, config = min(found, key=lambda one: one[0])
    return Entry(kernel=shape.kernel, m=shape.m, n=shape.n, k=shape.k, config=config, microseconds=took), refused


def tune(path: Path, device: torch.device, over: Sequence[Shape] | None = None) -> Table:
    """Measures all shapes and writes the table to a file."""
    entries, refused = [], 0
    for shape in shapes() if over is None else over:
        entry, left = best(shape, list(candidates(shape)), device, lambda work: microseconds(work, REPEATS))
        refused += left
        if entry is not None:
            entries.append(entry)
            print(f"{shape.kernel} {shape.m}x{shape.n}x{shape.k}: {entry.microseconds:.1f} us by {entry.config}")
    note = f"measured by python -m bench.gpu --tune with Triton {triton.__version__}; no room for {refused} candidates"
    table = Table(device=name_of(device), measured=device.type == "cuda", note=note, entries=tuple(entries))
    tuning.write(path, table)
    return table


def _integers(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randint(-127, 128, shape, device=device, dtype=torch.int8)
