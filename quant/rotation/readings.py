"""Follows from which weights every layer's input channels come, in one call of a module. Must not know any model.

The follower sees every torch function and knows what few of them do to a strand (strands.py). All others end it, and
its rows are *spoiled*: something reads them that cannot take a change back. So are rows that norms and other parts
read, and those of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from quant.backends.call import Call, call_module
from quant.layers import FloatLayer, as_float_layer, quantizable_layers
from quant.nesting import tensors_of
from quant.rotation.channels import input_channels
from quant.rotation.strands import Rows, Strand, follow, goes_on


@dataclass(slots=True)
class Reading:
    """What one layer read in a call.

    Attributes:
        inputs: numbers that tell its input tensors apart, one for each time that it ran: equal for the same tensors.
        strand: of its input, if it is one, and always the same.
        tokens: rows of its inputs, or pixels, for one row of the call.
        macs: its multiply-adds for one row of the call.
    """

    inputs: tuple[int, ...] = ()
    strand: Strand | None = None
    tokens: float = 0.0
    macs: float = 0.0


@dataclass(frozen=True, slots=True)
class Readings:
    """What one call showed: each linear and convolution that ran, and rows that something else read too."""

    layers: dict[str, Reading]
    spoiled: frozenset[Rows]

    def clear(self, rows: Iterable[Rows]) -> bool:
        """Whether linears and convolutions alone read some rows."""
        return not any(own.overlaps(other) for own in rows for other in self.spoiled)


def read_strands(module: nn.Module, call: Call) -> Readings:
    """What each linear and convolution read while the module answered a call."""
    follower, found = _Follower(dict(_bare(module))), dict[str, Reading]()

    def before(name: str, layer: FloatLayer) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            (x,) = (*arguments, *keywords.values())
            strand, own = follower.strand(x), found.setdefault(name, Reading())
            channels = input_channels(layer)
            fits = strand is not None and strand.width == channels == layer.weight.shape[1]  # no grouped convolution
            if not fits or (own.inputs and own.strand != strand):
                follower.spoil(strand)
                follower.spoil(own.strand)
                strand = None
            own.strand, own.inputs = strand, (*own.inputs, follower.number(x))
            own.tokens += x.numel() / channels / call.count

        return hook

    def after(name: str, layer: FloatLayer) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, output: Tensor) -> None:
            found[name].macs += output.numel() * math.prod(layer.weight.shape[1:]) / call.count

        return hook

    with torch.no_grad(), ExitStack() as stack:
        layers = quantizable_layers(module)
        for name, part, made in _makers(module):
            stack.callback(part.register_forward_pre_hook(follower.enters(name in layers), with_kwargs=True).remove)
            stack.callback(part.register_forward_hook(follower.leaves(made)).remove)
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(before(name, layer), with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(after(name, layer)).remove)
        with follower:
            follower.spoil(follower.strand(call_module(module, call)))
    return Readings(found, frozenset(follower.spoiled))


def _makers(module: nn.Module) -> Iterator[tuple[str, nn.Module, Strand | None]]:
    """(name, part, strand of its output) of every part without children that has parameters."""
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if any(True for _ in part.children()) or not any(True for _ in part.parameters()):
            continue
        linear = as_float_layer(part) is not None
        if isinstance(weight, Tensor) and (linear or weight.ndim == 1):
            rows, groups = frozenset({Rows(name, 0, len(weight))}), getattr(part, "groups", 1)
            yield name, part, Strand(rows, len(weight), whole=True, rotates=linear and groups == 1)
        else:
            yield name, part, None


def _bare(module: nn.Module) -> Iterator[tuple[Tensor, Strand]]:
    """Parameters that belong to no layer, such as a block's own table of scales and shifts, as strands laid flat."""
    for name, part in module.named_modules():
        if any(True for _ in part.children()):
            for own, values in part.named_parameters(recurse=False):
                rows = Rows(f"{name}.{own}".removeprefix("."), 0, values.numel(), bare=True)
                yield values, Strand(frozenset({rows}), values.numel(), whole=True, rotates=False)


class _Follower(TorchFunctionMode):
    """Knows which tensors are strands, tells tensors apart, and collects spoiled rows."""

    def __init__(self, known: Mapping[Tensor, Strand]) -> None:
        super().__init__()
        self.spoiled: set[Rows] = set()
        self._strands: Any = WeakTensorKeyDictionary()
        self._numbers: Any = WeakTensorKeyDictionary()
        self._count = self._inside = 0
        for values, strand in known.items():
            self._note(values, strand)

    def strand(self, x: Any) -> Strand | None:
        """What a tensor's channels are made of."""
        found: Strand | None = self._strands.get(x) if isinstance(x, Tensor) else None
        return found

    def number(self, x: Tensor) -> int:
        """A number for each tensor; never used for another one."""
        if x not in self._numbers:
            self._count += 1
            self._numbers[x] = self._count
        return int(self._numbers[x])

    def spoil(self, strand: Strand | None) -> None:
        """Something reads a strand that no change can be taken back in."""
        if strand is not None:
            self.spoiled |= strand.rows

    def enters(self, takes_back: bool) -> Callable[..., None]:
        """A forward pre-hook of a part without children: what functions it calls is its own affair."""

        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._inside += 1
            for x in () if takes_back else tensors_of((arguments, keywords)):
                self.spoil(self.strand(x))

        return hook

    def leaves(self, strand: Strand | None) -> Callable[..., None]:
        """A forward hook of a part without children: the output is a new strand, or none."""

        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            self._inside -= 1
            if isinstance(output, Tensor):
                self._note(output, strand)

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._inside or name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        read = [strand for x in tensors_of((args, kwargs)) if (strand := self.strand(x)) is not None]
        found = follow(name, args, kwargs, self.strand) if read else ()
        output = func(*args, **kwargs)
        results = list(tensors_of(output))
        for strand in read if results else ():
            if not any(one is not None and goes_on(strand, one) for one in found):
                self.spoil(strand)
        for index, result in enumerate(results):
            self._note(result, found[index] if index < len(found) else None)
        return output

    def _note(self, x: Tensor, strand: Strand | None) -> None:
        if strand is not None:
            self._strands[x] = strand
        elif x in self._strands:
            del self._strands[x]
