"""A list of torch operations and leaf calls, to be played again with other tensors. Must not know how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quant.nesting import tensors_of as tensors_of  # whoever makes tapes takes values apart in the same way

Apply = Callable[..., Tensor]
"""`apply(name, leaf, *arguments, **keywords)`: runs a leaf in somebody's own way."""


class Ref(NamedTuple):
    """Stands for a value in a tape's arguments: its place among all values."""

    place: int


class Operation(NamedTuple):
    """One thing to do again. `function` is a torch function, or the name of a leaf; `outputs` are where tensors of the
    result go, in order; `reads` and `makes` tell the memory of its arguments and of what it makes or changes.
    """

    function: Callable[..., Any] | str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: tuple[int, ...]
    reads: frozenset[int]
    makes: frozenset[int]


class LeafCall(NamedTuple):
    """How a leaf was called.

    Attributes:
        name: of the leaf.
        sources: leaves whose outputs reached its arguments without another leaf between.
        input_shape: of its first tensor.
        by_index: whether that holds integers, as an embedding's.
        output_shape: of its result.
        dtype: of its result.
    """

    name: str
    sources: frozenset[str]
    input_shape: tuple[int, ...]
    by_index: bool
    output_shape: tuple[int, ...]
    dtype: torch.dtype


class Tape(NamedTuple):
    """A recording.

    Attributes:
        inputs: where the inputs go among the values, in the order given to `play`.
        operations: in order.
        leaf_calls: those of them that are calls of leaves, described, in the same order.
        changes: whether some operation changes a value in place.
    """

    inputs: tuple[int, ...]
    operations: tuple[Operation, ...]
    leaf_calls: tuple[LeafCall, ...]
    changes: bool

    def play(self, tensors: Sequence[Tensor], leaves: Mapping[str, nn.Module], apply: Apply | None) -> list[Tensor]:
        """Outputs of all calls of leaves, in order, for inputs of the recorded shapes and dtypes. Differentiable."""
        values: dict[int, Any] = dict(zip(self.inputs, (tensor.clone() for tensor in tensors), strict=True))
        results = []
        for function, arguments, keywords, outputs, *_ in self.operations:
            own = _resolve(arguments, values)
            named = _resolve(keywords, values) if keywords else keywords
            if isinstance(function, str):
                leaf = leaves[function]
                result = leaf(*own, **named) if apply is None else apply(function, leaf, *own, **named)
                results.append(result.clone() if self.changes else result)
            else:
                result = function(*own, **named)
            values.update(zip(outputs, tensors_of(result), strict=True))
        return results


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nested value with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple) and any(True for _ in tensors_of(value)):
        parts = [mapped(part, change) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def needed(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """The operations that a leaf's call follows from."""
    kept: list[Operation] = []
    wanted: set[int] = set()
    for operation in reversed(operations):
        if isinstance(operation.function, str) or wanted & operation.makes:
            kept.append(operation)
            wanted |= operation.reads
    return tuple(reversed(kept))


def _resolve(value: Any, values: Mapping[int, Any]) -> Any:
    """Arguments with values in place of what stands for them."""
    if isinstance(value, Ref):
        return values[value.place]
    if isinstance(value, dict):
        return {name: _resolve(part, values) for name, part in value.items()}
    if isinstance(value, list):
        return [_resolve(part, values) for part in value]
    if type(value) is tuple:
        return tuple(_resolve(part, values) for part in value)
    return value
