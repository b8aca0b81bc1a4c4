"""Which linears of a module with kernels run in fp8 instead of int8: all that can, or those that are faster so.

Must not know calls. fp8 rounds otherwise than the integers that were calibrated: it is asked for, never taken silently.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Final, Literal

import torch
from torch import Tensor, nn

from quant.backends.cuda_layers import READ_BY_MODELS, KernelLinear
from quant.kernels.fp8_linear import fp8_linear, to_fp8, why_not
from quant.layers import replace_layers

Products = Literal["int8", "fp8", "measured"]

ROWS: Final = 4096
"""Tokens that products are timed with."""

ROUNDS: Final = 20

Timer = Callable[[Callable[[], object]], float]
"""Seconds that something takes."""


class Fp8Linear(nn.Module):
    """A linear layer [..., in] to [..., out] whose inputs and weights are rounded to e4m3.

    Buffers:
        values: float8_e4m3fn [out, in]; channel_scale: [out] float32; bias_values: [out] float32, or absent.
    """

    values: Tensor
    channel_scale: Tensor
    bias_values: Tensor | None
    stand_in: nn.Parameter
    kernel = "fp8_linear"

    def __init__(self, layer: KernelLinear) -> None:
        super().__init__()
        self.register_buffer("values", to_fp8(layer.integers))
        self.stand_in = layer.stand_in
        for name in ("channel_scale", "bias_values"):
            self.register_buffer(name, getattr(layer, name))
        for name in READ_BY_MODELS:
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    @property
    def weight(self) -> Tensor:
        """An empty tensor: models read a weight's dtype and device."""
        return self.stand_in

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = fp8_linear(rows, self.values, self.channel_scale, self.bias_values, x.dtype)
        return out.view(*x.shape[:-1], out.shape[1])


def choose(module: nn.Module, products: Products, timer: Timer | None = None) -> Mapping[str, str]:
    """Puts fp8 layers where they are asked for, or are faster; dotted name of each 8-bit linear to what runs it.

    Layers whose inputs stay float, whose weights have 4 bits, or whose input is transformed on the way, stay as they
    are, and so do those without an fp8 product.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, KernelLinear)}
    able = {name: layer for name, layer in layers.items() if _may_change(layer)}
    if products == "int8":
        return {name: layer.kernel for name, layer in layers.items()}
    if products == "measured":
        timed = timer or seconds
        known: dict[tuple[int, ...], bool] = {}
        for layer in able.values():
            shape = tuple(layer.integers.shape)
            if shape not in known:
                known[shape] = _is_faster(layer, timed)
        able = {name: layer for name, layer in able.items() if known[tuple(layer.integers.shape)]}
    made = {name: Fp8Linear(layer) for name, layer in able.items()}
    replace_layers(module, made)
    return {name: made[name].kernel if name in made else layer.kernel for name, layer in layers.items()}


def _may_change(layer: KernelLinear) -> bool:
    plain = layer.rounds and not layer.packed and layer.factors is None and layer.signs is None
    columns, depth = layer.integers.shape
    return plain and not why_not(columns, depth, layer.integers.device)


def _is_faster(layer: KernelLinear, timer: Timer) -> bool:
    """Whether the layer takes less time in fp8, rounding of its inputs included."""
    shape = (ROWS, layer.integers.shape[1])
    x = torch.randn(shape, device=layer.integers.device, dtype=layer.stand_in.dtype)
    other = Fp8Linear(layer)
    return timer(lambda: other(x)) < timer(lambda: layer.anew(x))


def seconds(work: Callable[[], object]) -> float:
    """The median time of some work on the current CUDA device."""
    work()
    found: list[float] = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(found)
