"""Runs a model under observation and keeps what quantization needs of every layer. Never sees a dataset or a pipeline.

The caller passes `run(answer)`, which has `answer` reply to every call of a typical run; hooks live only while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.errors import CalibrationError
from quant.layers import FloatLayer, QuantizedConv2d, QuantizedLinear, quantizable_layers
from quant.observe import Histogram
from quant.rotation.channels import ChannelObserver, ChannelStatistics
from quant.samples import Reservoir, Samples, own_copy
from quant.samples import SampleWish as SampleWish  # whoever calibrates says its wish
from quant.slots import Slots
from quant.tokens import TokenSpread

MAX_CALLS = 16
"""Rows of whole calls that are kept for judging layers together."""
BINS_OF_EACH = 512
"""Bins of the histograms of one slot and branch: there are many of them."""

Answer = Callable[[Call], Tensor]
"""What a run asks: a call of B rows to the model's output [B, ...]."""
Cell = tuple[int, int]
"""Slot and branch."""


@dataclass(slots=True)
class LayerStatistics:
    """What one linear or convolution was fed, over all calls of all steps.

    Attributes:
        inputs: histogram of every number of its input.
        macs: multiply-adds of all calls together.
        each: the same by slot and branch, where that was asked for and rows lead the input.
        parts: the same for each part of a layer that is split along its input channels; else empty.
        rows_lead: the input's first dimension always was the call's rows: only then may a scale follow time.
        tokens: what a scale for each token would cost.
    """

    inputs: Histogram = field(default_factory=Histogram)
    macs: int = 0
    each: dict[Cell, Histogram] = field(default_factory=dict)
    parts: list[LayerStatistics] = field(default_factory=list)
    rows_lead: bool = True
    tokens: TokenSpread = field(default_factory=TokenSpread)

    def count(self, values: Tensor, cell: Cell | None) -> None:
        """Counts the numbers of rows that stand in one cell, or of all rows.

        Raises:
            CalibrationError: a number is NaN or infinite.
        """
        fresh = Histogram()
        fresh.add(values)
        self.inputs.merge(fresh)
        if cell is not None:
            self.each.setdefault(cell, Histogram(bins=BINS_OF_EACH)).merge(fresh)


@dataclass(slots=True)
class Statistics:
    """What a calibration saw.

    Attributes:
        layers: dotted name of each linear and convolution to its statistics; those that never ran are there, empty.
        rows: how many rows the module was called with in all.
        schedule: distinct values of the timestep in order of first appearance, as the module receives them; slot i
            stands for the i-th. Empty where no argument is a timestep.
        calls: up to MAX_CALLS single rows, evenly spread over all calls.
        samples: rows to reconstruct on; None where none were wished for.
        splits: layers that were observed in parts, and the parts' input channels.
        channels: what each layer's input channels were fed; None where that was not asked for.
    """

    layers: dict[str, LayerStatistics]
    rows: int = 0
    schedule: tuple[float, ...] = ()
    calls: list[Call] = field(default_factory=list)
    samples: Samples | None = None
    splits: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels: ChannelStatistics | None = None


def calibrate(
    module: nn.Module,
    run: Callable[[Answer], object],
    *,
    splits: Mapping[str, tuple[int, ...]] | None = None,
    by_time: bool = False,
    samples: SampleWish | None = None,
    channels: bool = False,
    more: Callable[[Answer], object] | None = None,
    seed: int = 0,
) -> Statistics:
    """Statistics of all linears and convolutions of `module` over the calls that `run(answer)` has answered.

    Args:
        module: the float model.
        run: has every call of a typical run answered; the rows' clocks must be set.
        splits: layers to observe in parts, and how many input channels each part has.
        by_time: whether to count by slot and branch too.
        samples: which rows to keep for reconstruction.
        channels: whether to observe channels too, see `quant.rotation.channels`.
        more: has further calls of the same schedule answered, whose rows may be kept for reconstruction but are not
            observed: that is several times as fast, and what learns needs more rows than what is counted. It is
            called when samples are first asked for; the module must be the same function then.
        seed: of the choice of those rows, and of channels' samples.

    Raises:
        CalibrationError: the module was never called, a layer was fed NaN or infinity, or a split names no such layer;
            when samples are asked for: `more` met timesteps that `run` did not.
    """
    layers = quantizable_layers(module)
    splits = dict(splits or {})
    _check_splits(layers, splits)
    statistics = Statistics({name: LayerStatistics() for name in layers}, splits=splits)
    for name, sizes in splits.items():
        statistics.layers[name].parts = [LayerStatistics() for _ in sizes]
    by_channel = ChannelObserver(module, seed) if channels else None
    observer = _Observer(module, statistics, by_time, Reservoir(samples, seed) if samples else None, by_channel)
    with observer.watching(layers), by_channel.watching() if by_channel else nullcontext():
        run(observer.answer)
    if statistics.rows == 0:
        raise CalibrationError("the model was never called while calibrating: there is nothing to quantize by")
    return observer.finished(more)


def _check_splits(layers: Mapping[str, FloatLayer], splits: Mapping[str, tuple[int, ...]]) -> None:
    for name, sizes in splits.items():
        if name not in layers or sum(sizes) != layers[name].weight.shape[1]:
            raise CalibrationError(f"no layer {name!r} has {sum(sizes)} input channels to be split into {sizes}")


class _Observer:
    """Answers calls by the module and counts what its layers are fed meanwhile."""

    def __init__(
        self,
        module: nn.Module,
        statistics: Statistics,
        by_time: bool,
        reservoir: Reservoir | None,
        channels: ChannelObserver | None,
    ) -> None:
        self._module, self._statistics = module, statistics
        self._by_time, self._reservoir, self._channels = by_time, reservoir, channels
        self._slots = Slots()
        self._calls, self._stride, self._rows = 0, 1, 0
        self._groups: list[tuple[Cell | None, slice | Tensor]] = []

    def answer(self, call: Call) -> Tensor:
        """The module's output [B, ...]."""
        slots = self._slots.of(call)
        if self._channels is not None:
            self._channels.expect(call)
        self._rows, self._groups = call.count, _groups(slots, call.clock.branch) if self._by_time else []
        with torch.no_grad():
            output = call_module(self._module, call)
        self._statistics.rows += call.count
        self._keep(call)
        if self._reservoir is not None:
            self._reservoir.add(call, slots)
        return output

    def finished(self, more: Callable[[Answer], object] | None) -> Statistics:
        """All that was seen."""
        self._statistics.schedule = self._slots.schedule
        kept = self._reservoir
        if kept is not None:
            later = None if more is None else partial(self._drawn, kept, more)
            self._statistics.samples = kept.samples() if later is None else Samples.later(later)
        if self._channels is not None:
            self._statistics.channels = self._channels.finished()
        return self._statistics

    def _drawn(self, reservoir: Reservoir, more: Callable[[Answer], object]) -> Samples:
        """What is kept of all calls, those of `more` too."""

        def answer(call: Call) -> Tensor:
            known, slots = len(self._statistics.schedule), self._slots.of(call)
            if len(self._slots.schedule) > known:
                raise CalibrationError("calls to learn on are of timesteps that no observed call has")
            reservoir.add(call, slots)
            with torch.no_grad():
                return call_module(self._module, call)

        more(answer)
        return reservoir.samples()

    def _keep(self, call: Call) -> None:
        calls = self._statistics.calls
        if self._calls % self._stride == 0:
            # a row of the first or second half, where many pipelines put one branch of guidance each; the parity of
            # set bits stays balanced when every second call is dropped below
            row = call.count // 2 if self._calls.bit_count() % 2 else 0
            calls.append(own_copy(call.take(torch.tensor([row]))))
            if len(calls) > MAX_CALLS:
                del calls[1::2]
                self._stride *= 2
        self._calls += 1

    @contextmanager
    def watching(self, layers: Mapping[str, FloatLayer]) -> Iterator[None]:
        """Within it every layer is observed."""
        handles = []
        try:
            for name, layer in layers.items():
                handles.append(layer.register_forward_hook(self._hook(name, layer), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, layer: FloatLayer) -> Callable[..., None]:
        seen, fan_in = self._statistics.layers[name], math.prod(layer.weight.shape[1:])
        sizes, linear = self._statistics.splits.get(name, ()), isinstance(layer, nn.Linear)
        dim, token = (-1, QuantizedLinear.token_dims) if linear else (1, QuantizedConv2d.token_dims)

        def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
            (x,) = (*arguments, *keywords.values())
            try:
                self._count(seen, x, token)
                pieces = torch.split(x, list(sizes), dim=dim) if sizes else ()
                for part, piece in zip(seen.parts, pieces, strict=True):
                    self._count(part, piece, token)
            except CalibrationError as error:
                raise CalibrationError(f"layer {name}: {error}") from error
            seen.macs += output.numel() * fan_in

        return hook

    def _count(self, seen: LayerStatistics, x: Tensor, token: tuple[int, ...]) -> None:
        seen.rows_lead = seen.rows_lead and x.shape[0] == self._rows
        if not (seen.rows_lead and self._groups):
            seen.count(x, None)
        else:
            for cell, rows in self._groups:
                seen.count(x[rows], cell)
        seen.tokens.add(x, token)


def _groups(slots: Tensor, branches: Tensor) -> list[tuple[Cell | None, slice | Tensor]]:
    """Each cell that rows stand in, and which rows do: a slice where they lie side by side, as they mostly do."""
    rows: dict[Cell, list[int]] = {}
    for row, cell in enumerate(zip(slots.tolist(), branches.tolist(), strict=True)):
        rows.setdefault(cell, []).append(row)
    return [
        (cell, slice(own[0], own[-1] + 1) if own[-1] - own[0] + 1 == len(own) else torch.tensor(own))
        for cell, own in rows.items()
    ]
