"""Observes what each input channel of every layer is fed, by slot: peaks, and a few rows. Must not know any model.

Smoothing and rotation are chosen by these: unlike histograms of whole tensors they tell channels apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.errors import CalibrationError
from quant.layers import FloatLayer, quantizable_layers
from quant.slots import Slots

ROWS_PER_SLOT = 64
"""Rows of a layer's input that are kept of each slot."""

Answer = Callable[[Call], Tensor]


@dataclass(slots=True)
class Channels:
    """What the input channels of one layer were fed.

    Attributes:
        peaks: [slots, C] float32, the largest magnitude of each channel in each slot; 0 where a slot was not seen. C
            is `in_features`, or `in_channels` of a convolution.
        samples: slot to [m, C] float32: up to ROWS_PER_SLOT tokens or pixels of that slot's inputs, every one as
            likely as any other. Slots that were not seen are not there.
    """

    peaks: Tensor
    samples: dict[int, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """[M, C]: the samples of all slots, in the order of slots."""
        kept = [self.samples[slot] for slot in sorted(self.samples)]
        return torch.cat(kept) if kept else self.peaks.new_zeros(0, self.peaks.shape[1])

    @property
    def ran(self) -> bool:
        """Whether the layer was fed anything but zeros."""
        return bool((self.peaks > 0).any())


@dataclass(slots=True)
class ChannelStatistics:
    """What a run showed of all layers.

    Attributes:
        schedule: distinct values of the timestep in order of first appearance, as `quant.calibrate.Statistics` has it.
        layers: dotted name of each linear and convolution to what its channels were fed; those that never ran are
            there, with peaks of zero.
    """

    schedule: tuple[float, ...]
    layers: dict[str, Channels]


def observe_channels(
    module: nn.Module, run: Callable[[Answer], object], *, seed: int, rows_per_slot: int = ROWS_PER_SLOT
) -> ChannelStatistics:
    """Has `run` make its calls and keeps what each layer's channels were fed.

    Layers whose input has as many rows as the call are told apart by each row's slot. Where rows do not lead a layer's
    input, it counts for every slot of the call: exact while calls are of one slot each.

    Args:
        module: the float model.
        run: `run(answer)` has every call of a typical run answered.
        seed: of the choice of samples. Layers of the same shapes keep the same places.
        rows_per_slot: samples of each slot, at most.

    Raises:
        CalibrationError: the module was never called, or a layer was fed NaN or infinity.
    """
    observer = ChannelObserver(module, seed, rows_per_slot)
    with observer.watching():
        run(observer.answer)
    return observer.finished()


def outlier_ratio(peaks: Mapping[str, Tensor] | ChannelStatistics) -> float:
    """How far the largest channels stand out: mean over layers of the largest channel's peak by the median channel's.

    Channels that are always zero do not count, nor do layers without any other. 1 where there is no layer.

    Args:
        peaks: largest magnitudes [C] by layer, or statistics, whose largest over all slots are taken.
    """
    if isinstance(peaks, ChannelStatistics):
        peaks = {name: layer.peaks.amax(0) for name, layer in peaks.layers.items() if layer.ran}
    alive = (peak[peak > 0] for peak in peaks.values())
    ratios = [float(peak.max() / peak.median()) for peak in alive if len(peak)]
    return statistics.fmean(ratios) if ratios else 1.0


@dataclass(slots=True)
class _Kept:
    """The kept rows of one slot: a uniform sample without repetition of all that came, by least random key."""

    keys: Tensor
    rows: Tensor

    def joined(self, other: _Kept, count: int) -> _Kept:
        keys, rows = torch.cat([self.keys, other.keys]), torch.cat([self.rows, other.rows])
        if len(keys) <= count:
            return _Kept(keys, rows)
        least = torch.topk(keys, count, largest=False).indices.sort().values
        return _Kept(keys[least], rows[least])


@dataclass(slots=True)
class _Layer:
    """What was seen of one layer so far, by slot."""

    generator: torch.Generator
    peaks: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, _Kept] = field(default_factory=dict)

    def add(self, rows: Tensor, slots: Iterable[int], count: int) -> None:
        """Counts rows [B, N, C] for each of some slots."""
        peak = rows.abs().amax((0, 1)).float().cpu()
        if not bool(torch.isfinite(peak).all()):
            raise CalibrationError("the input holds NaN or infinity")
        total = rows.shape[0] * rows.shape[1]
        keys = torch.rand(total, generator=self.generator, dtype=torch.float64)
        least = torch.topk(keys, min(count, total), largest=False).indices
        outer, inner = least // rows.shape[1], least % rows.shape[1]
        fresh = _Kept(keys[least], rows[outer.to(rows.device), inner.to(rows.device)].float().cpu())
        for slot in slots:
            before = self.peaks.get(slot)
            self.peaks[slot] = peak if before is None else torch.maximum(before, peak)
            self.kept[slot] = self.kept[slot].joined(fresh, count) if slot in self.kept else fresh


class ChannelObserver:
    """Keeps what the channels of a module's layers are fed while it answers calls. See `observe_channels`."""

    def __init__(self, module: nn.Module, seed: int, rows_per_slot: int = ROWS_PER_SLOT) -> None:
        self._module, self._count = module, rows_per_slot
        self._layers = quantizable_layers(module)
        self._seen = {name: _Layer(torch.Generator().manual_seed(seed)) for name in self._layers}
        self._slots, self._now = Slots(), torch.zeros(0, dtype=torch.int64)
        self._called = False

    def expect(self, call: Call) -> None:
        """Says which call the module runs next."""
        self._now, self._called = self._slots.of(call), True

    def answer(self, call: Call) -> Tensor:
        """The module's output [B, ...]."""
        self.expect(call)
        with torch.no_grad():
            return call_module(self._module, call)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it every layer is observed."""
        handles = []
        try:
            for name, layer in self._layers.items():
                handles.append(layer.register_forward_pre_hook(self._hook(name, layer), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finished(self) -> ChannelStatistics:
        """All that was seen.

        Raises:
            CalibrationError: the module was never called.
        """
        if not self._called:
            raise CalibrationError("the model was never called while calibrating: there is nothing to go by")
        schedule = self._slots.schedule
        layers = {}
        for name, layer in self._layers.items():
            peaks, seen = torch.zeros(max(1, len(schedule)), input_channels(layer)), self._seen[name]
            for slot, peak in seen.peaks.items():
                peaks[slot] = peak
            layers[name] = Channels(peaks, {slot: kept.rows for slot, kept in sorted(seen.kept.items())})
        return ChannelStatistics(schedule, layers)

    def _hook(self, name: str, layer: FloatLayer) -> Callable[..., None]:
        seen = self._seen[name]

        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            (x,) = (*arguments, *keywords.values())
            rows = channel_rows(x.detach(), layer)
            distinct = sorted(set(self._now.tolist()))
            try:
                if len(distinct) == 1 or rows.shape[0] != len(self._now):
                    seen.add(rows, distinct, self._count)
                else:
                    for slot in distinct:
                        seen.add(rows[self._now == slot], [slot], self._count)
            except CalibrationError as error:
                raise CalibrationError(f"layer {name}: {error}") from error

        return hook


def input_channels(layer: FloatLayer) -> int:
    """C, how many channels a layer's input has."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def channel_rows(x: Tensor, layer: FloatLayer) -> Tensor:
    """A layer's input as [B, N, C]: N tokens, or pixels of a convolution's, of each entry of its first dimension."""
    if isinstance(layer, nn.Conv2d):
        return (x if x.ndim == 4 else x[None]).flatten(2).transpose(1, 2)
    if x.ndim == 1:
        return x[None, None]
    return x[:, None] if x.ndim == 2 else x.flatten(1, -2)
