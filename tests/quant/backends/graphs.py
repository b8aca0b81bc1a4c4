"""Small modules of quantized layers as graphs of fixed shapes: traced, rewritten or not, and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quant.backends import context, convert, runtime
from quant.backends.call import Call
from quant.backends.moment import run_timed, timed
from quant.clock import Moment, MomentHolder, StepClock
from quant.layers import InputGrid, QuantizedConv2d, QuantizedLayer, bind

SLOTS = 3


def call_of(sample: Tensor) -> Call:
    """A call whose rows are at different moments."""
    rows = len(sample)
    places = torch.arange(rows)
    moment = Moment(places % SLOTS, places % 2, places % SLOTS, torch.ones(rows, dtype=torch.bool))
    return timed(Call({"sample": sample}, StepClock.unknown(rows)), moment)


def filled(
    layer: QuantizedLayer, *, seed: int = 0, bits: int = 8, zero_point: int = 57, steps: bool = True, high: float = 4.0
) -> QuantizedLayer:
    """The layer with random integers and scales, its inputs' grid from below zero to about `high`."""
    random = torch.Generator().manual_seed(seed)
    most = (1 << (bits - 1)) - 1
    shape, outputs = layer.integers.shape, layer.integers.shape[0]
    integers = torch.randint(-most, most + 1, tuple(shape), generator=random, dtype=torch.int8)
    layer.set_weight(
        integers, 0.01 * (1 + torch.rand(outputs, generator=random)), torch.randn(outputs, generator=random)
    )
    scales = high / 255 * (1 + torch.rand(SLOTS, 3, generator=random))
    if steps:
        layer.set_time_grids(scales, zero_point)
    else:
        layer.input_scale = scales[0, 0].clone()
        layer.set_zero_point(zero_point)
    return layer


def convolution(like: nn.Conv2d, **how: Any) -> QuantizedLayer:
    """A filled one of that shape."""
    slots = SLOTS if how.get("steps", True) else 0
    return filled(QuantizedConv2d(like, InputGrid(8, slots), "cpu"), **how)


def graph(module: nn.Module, call: Call) -> Any:
    """The module's graph for calls like this one."""
    bind(module, MomentHolder())
    model = convert.convert(module.eval().requires_grad_(False), call)
    model.reshape(convert.shapes(model, call, call.count))
    context.fix_shapes(model)
    return model


def rewritten(module: nn.Module, call: Call, rewrite: Callable[[Any], int]) -> tuple[Any, int]:
    """That graph after rewriting, and how much was."""
    model = graph(module, call)
    return model, rewrite(model)


def compiled(model: Any) -> Any:
    """Compiled to compute in float32 what is not integer."""
    return runtime.core().compile_model(model, "CPU", runtime.properties(1))


def answer(model: Any, call: Call) -> Tensor:
    """What a graph answers, [rows, ...]."""
    tensors = call.tensors()
    result = compiled(model)([tensors[name].numpy() for name in convert.input_names(model, call)])
    return torch.from_numpy(result[0].copy())


def by_torch(module: nn.Module, call: Call) -> Tensor:
    """What the module answers."""
    with torch.no_grad():
        return run_timed(module, call.tensors(), call.constants)


def kinds(model: Any) -> list[str]:
    """Types of a graph's nodes."""
    return [node.get_type_name() for node in model.get_ordered_ops()]
