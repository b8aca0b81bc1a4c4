"""Runs a model under observation and keeps what quantization needs of every layer. Never sees a dataset or a pipeline.

The caller passes `run(module)`, which feeds the module whatever is typical; hooks live only while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from quant.errors import CalibrationError
from quant.layers import FloatLayer, first_tensor, quantizable_layers
from quant.observe import Histogram

MAX_CALLS = 16
"""Rows of whole calls that are kept for judging layers together."""


@dataclass(slots=True)
class LayerStatistics:
    """What one linear or convolution was fed, over all calls of all steps.

    Attributes:
        inputs: histogram of every number of its input.
        macs: multiply-adds of all calls together.
    """

    inputs: Histogram = field(default_factory=Histogram)
    macs: int = 0


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """The arguments of one call of the whole module, cut down to one of its rows."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def repeat(self, module: nn.Module) -> Any:
        """What the module answers to it; gradients may be taken."""
        return module(*_own(self.arguments), **_own(self.keywords))


@dataclass(slots=True)
class Statistics:
    """What a calibration saw.

    Attributes:
        layers: dotted name of each linear and convolution to its statistics; those that never ran are there, empty.
        rows: how many rows the module was called with in all.
        calls: up to MAX_CALLS single rows, evenly spread over all calls.
    """

    layers: dict[str, LayerStatistics]
    rows: int = 0
    calls: list[ModuleCall] = field(default_factory=list)


def calibrate(module: nn.Module, run: Callable[[nn.Module], object]) -> Statistics:
    """Statistics of all linears and convolutions of `module` while `run(module)` calls it.

    Raises:
        CalibrationError: the module was never called, or a layer was fed NaN or infinity.
    """
    names = quantizable_layers(module)
    statistics = Statistics({name: LayerStatistics() for name in names})
    with _observed(module, names, statistics):
        run(module)
    if statistics.rows == 0:
        raise CalibrationError("the model was never called while calibrating: there is nothing to quantize by")
    return statistics


@contextmanager
def _observed(module: nn.Module, layers: Mapping[str, FloatLayer], statistics: Statistics) -> Iterator[None]:
    handles = [module.register_forward_hook(_count_rows(statistics), with_kwargs=True)]
    try:
        for name, layer in layers.items():
            fan_in = math.prod(layer.weight.shape[1:])
            handles.append(layer.register_forward_hook(_observe(name, fan_in, statistics.layers[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observe(name: str, fan_in: int, seen: LayerStatistics) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        try:
            seen.inputs.add(arguments[0])
        except CalibrationError as error:
            raise CalibrationError(f"layer {name}: {error}") from error
        seen.macs += output.numel() * fan_in

    return hook


def _count_rows(
    statistics: Statistics,
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    seen, stride = 0, 1

    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        nonlocal seen, stride
        rows = int(first_tensor(output).shape[0])
        statistics.rows += rows
        if seen % stride == 0:
            # a row of the first or second half, where many pipelines put one branch of guidance each; the parity of
            # set bits stays balanced when every second call is dropped below
            row = rows // 2 if seen.bit_count() % 2 else 0
            statistics.calls.append(ModuleCall(_row(arguments, rows, row), _row(keywords, rows, row)))
            if len(statistics.calls) > MAX_CALLS:
                statistics.calls = statistics.calls[::2]
                stride *= 2
        seen += 1

    return hook


def _row(value: Any, rows: int, row: int) -> Any:
    """Arguments with every tensor of `rows` rows cut down to one of them, copied, however they are nested."""
    if isinstance(value, Tensor):
        return value[row : row + 1].clone() if value.ndim > 0 and value.shape[0] == rows else value.clone()
    return _rebuilt(value, lambda part: _row(part, rows, row))


def _own(value: Any) -> Any:
    """Arguments with every tensor as one that autograd may use, wherever it was made."""
    return value.clone() if isinstance(value, Tensor) else _rebuilt(value, _own)


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: change(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(change(part) for part in value)
    return value
