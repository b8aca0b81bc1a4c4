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


@dataclass(slots=True)
class LayerStatistics:
    """What one linear or convolution was fed, over all calls of all steps.

    Attributes:
        inputs: histogram of every number of its input.
        macs: multiply-adds of all calls together.
    """

    inputs: Histogram = field(default_factory=Histogram)
    macs: int = 0


@dataclass(slots=True)
class Statistics:
    """What a calibration saw.

    Attributes:
        layers: dotted name of each linear and convolution to its statistics; those that never ran are there, empty.
        rows: how many rows the module was called with in all.
    """

    layers: dict[str, LayerStatistics]
    rows: int = 0


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
    handles = [module.register_forward_hook(_count_rows(statistics))]
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


def _count_rows(statistics: Statistics) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        statistics.rows += int(first_tensor(output).shape[0])

    return hook
