"""Arguments and outputs of any part of a model, for many rows at once. Knows nested values, not what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.errors import QuantError
from quant.waiting import LiveBytes


class NotByRows(QuantError):
    """A part's tensors do not follow the rows of a call, so rows of several calls cannot be mixed."""


class Hole(NamedTuple):
    """Where a tensor was in nested values."""

    place: int


def without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Nested values with a hole for each tensor, which is appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return Hole(len(tensors) - 1)
    return _rebuilt(value, lambda part: without_tensors(part, tensors))


def with_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Nested values with their holes filled."""
    return (
        tensors[value.place] if isinstance(value, Hole) else _rebuilt(value, lambda part: with_tensors(part, tensors))
    )


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of nested values, in order."""
    found: list[Tensor] = []
    without_tensors(value, found)
    return found


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: change(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(change(part) for part in value)
    return value


@dataclass(frozen=True, slots=True)
class Layout:
    """How a part's tensors follow the rows of a call.

    Attributes:
        inputs, outputs: for each tensor, how many entries of its first dimension a row has; 0 if all rows share it.
        row_bytes: of those that rows do not share, for one row.
        held: bytes that a forward which waits at the part holds for one row.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    row_bytes: int
    held: int


@dataclass(slots=True)
class Stack:
    """A part's arguments and the outputs that it should have, for many rows.

    Attributes:
        arguments: positional and keyword arguments with holes for tensors.
        inputs: [rows, k, ...] where a row has k entries; as they came where rows share them.
        targets: [rows, k, ...], those floating-point outputs that rows do not share.
        rows: how many.
    """

    layout: Layout
    arguments: Any
    inputs: list[Tensor]
    targets: list[Tensor]
    rows: int

    def take(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
        """Positional arguments, keyword arguments and targets of some rows [N] int64."""
        inputs = [
            tensor[rows].flatten(0, 1) if entries else tensor
            for tensor, entries in zip(self.inputs, self.layout.inputs, strict=True)
        ]
        arguments, keywords = with_tensors(self.arguments, inputs)
        return arguments, keywords, [target[rows].flatten(0, 1) for target in self.targets]

    def compared(self, output: Any) -> list[Tensor]:
        """The tensors of an output that targets are for."""
        return _by_row(tensors_in(output), self.layout.outputs)


def _by_row(outputs: list[Tensor], entries: Sequence[int]) -> list[Tensor]:
    pairs = zip(outputs, entries, strict=True)
    return [tensor for tensor, own in pairs if own and tensor.is_floating_point()]


@dataclass(slots=True)
class StackBuilder:
    """Collects a stack from chunks of rows."""

    layout: Layout
    _arguments: Any = None
    _inputs: list[list[Tensor]] = field(default_factory=list)
    _targets: list[list[Tensor]] = field(default_factory=list)
    _rows: int = 0

    def add(self, rows: int, arguments: Any, output: Any) -> None:
        """Adds copies of what a chunk of `rows` rows was fed, (arguments, keywords), and put out.

        Raises:
            NotByRows: a tensor that rows should share is another one than before, or the shapes are not as laid out.
        """
        tensors: list[Tensor] = []
        holes = without_tensors(arguments, tensors)
        outputs = tensors_in(output)
        if len(tensors) != len(self.layout.inputs) or len(outputs) != len(self.layout.outputs):
            raise NotByRows("it takes or gives another number of tensors from call to call")
        if not self._rows:
            self._arguments, self._inputs = holes, [[] for _ in tensors]
            self._targets = [[] for _ in _by_row(outputs, self.layout.outputs)]
        for pieces, tensor, entries in zip(self._inputs, tensors, self.layout.inputs, strict=True):
            if entries:
                pieces.append(tensor.reshape(rows, entries, *tensor.shape[1:]).clone())
            elif not pieces:
                pieces.append(tensor.clone())
            elif not torch.equal(pieces[0], tensor):
                raise NotByRows("a tensor without rows differs from call to call")
        for pieces, tensor in zip(self._targets, _by_row(outputs, self.layout.outputs), strict=True):
            pieces.append(tensor.reshape(rows, -1, *tensor.shape[1:]).clone())
        self._rows += rows

    def stack(self) -> Stack:
        """The whole stack."""
        inputs = [
            torch.cat(pieces) if entries else pieces[0]
            for pieces, entries in zip(self._inputs, self.layout.inputs, strict=True)
        ]
        return Stack(self.layout, self._arguments, inputs, [torch.cat(pieces) for pieces in self._targets], self._rows)


@dataclass(slots=True)
class _Probe:
    """Shapes that one call showed of a part."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    held: int


def examine(module: nn.Module, names: Sequence[str], call: Call) -> dict[str, Layout | None]:
    """How the tensors of some parts of a module follow rows, by name, where rows decide their first dimension alone.

    The call's first row is run twice over and three times over; whatever grows with rows follows them. None for a part
    whose tensors follow them in another way, or that does not run.
    """
    few, more = (_probed(module, names, call.take(torch.zeros(rows, dtype=torch.int64))) for rows in (2, 3))
    return {name: _layout(few.get(name), more.get(name)) for name in names}


def _probed(module: nn.Module, names: Sequence[str], call: Call) -> dict[str, _Probe]:
    probes: dict[str, _Probe] = {}
    live = LiveBytes([*module.parameters(), *module.buffers(), *call.tensors().values()])

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, keywords: Any) -> None:
            if name not in probes:
                probes[name] = _Probe(_shapes((arguments, keywords)), [], live.now // call.count)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            probes[name].outputs = probes[name].outputs or _shapes(output)

        return hook

    with torch.no_grad(), ExitStack() as stack:
        for name in names:
            part = module.get_submodule(name)
            stack.callback(part.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(after(name)).remove)
        with live:
            call_module(module, call)
    return probes


def _shapes(value: Any) -> list[Tensor]:
    return [torch.empty_like(tensor, device="meta") for tensor in tensors_in(value)]


def _layout(few: _Probe | None, more: _Probe | None) -> Layout | None:
    if few is None or more is None:
        return None
    inputs, outputs = _entries(few.inputs, more.inputs), _entries(few.outputs, more.outputs)
    if inputs is None or outputs is None:
        return None
    pairs = zip(few.inputs + few.outputs, inputs + outputs, strict=True)
    row_bytes = sum(tensor.nbytes // 2 for tensor, entries in pairs if entries)
    return Layout(inputs, outputs, row_bytes, few.held)


def _entries(few: list[Tensor], more: list[Tensor]) -> tuple[int, ...] | None:
    """For each tensor the entries that a row has of its first dimension, from calls of two and of three rows."""
    if len(few) != len(more):
        return None
    entries = []
    for two, three in zip(few, more, strict=True):
        if two.shape == three.shape:
            entries.append(0)
        elif two.shape[1:] == three.shape[1:] and two.shape[0] * 3 == three.shape[0] * 2:
            entries.append(two.shape[0] // 2)
        else:
            return None
    return tuple(entries)
