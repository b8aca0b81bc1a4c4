"""Follows which arguments of a forward each value is made of, operation by operation. Must not know any model.

Every operation that PyTorch runs passes by here (TorchDispatchMode). Its results are made of what its arguments are
made of; this is noted for each storage, so views and changes in place are followed too. Values are never looked at:
tensors may be fake (shapes only), and so may parameters. What takes only another tensor's shape depends on nothing.

Not followed: a number that Python itself reads out of a tensor and computes on. A fake tensor refuses to be read; where
latents and text are fake, no real one is made of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from quant.nesting import tensors_of

SHAPE_ONLY = frozenset(
    f"aten::{name}"
    for name in (
        *(f"{value}_like" for value in ("zeros", "ones", "empty", "full", "rand", "randn")),
        *(f"new_{value}" for value in ("zeros", "ones", "empty", "full", "empty_strided")),
    )
)
"""Operations whose results depend on the shapes of their arguments and on no values."""


class Made(NamedTuple):
    """What a value was made of.

    Attributes:
        roles: roles of arguments that it depends on.
        leaves: temporal leaves whose outputs reached it without another temporal leaf between.
    """

    roles: frozenset[str]
    leaves: frozenset[str]

    def both(self, other: Made) -> Made:
        """What a value is made of that was made of two."""
        return self if not other.roles else Made(self.roles | other.roles, self.leaves | other.leaves)


NOTHING = Made(frozenset(), frozenset())


@dataclass(slots=True)
class LeafFlow:
    """What one run saw of a leaf module.

    Attributes:
        calls: how often it ran.
        roles: roles of arguments that its inputs depend on, over all its calls.
        reads: temporal leaves whose outputs its inputs are made of, without another one between.
        numbers: numbers that its last output held; 0 if that was no tensor.
    """

    calls: int = 0
    roles: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    numbers: int = 0


@dataclass(slots=True)
class Flow:
    """What one run saw.

    Attributes:
        leaves: of each leaf module that ran, by name.
        frontier: names of temporal leaves whose outputs reach the model's output, or a leaf that is not temporal.
        cut: names of leaves that ran on temporal inputs at least once.
    """

    leaves: dict[str, LeafFlow] = field(default_factory=dict)
    frontier: frozenset[str] = frozenset()
    cut: set[str] = field(default_factory=set)


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, notes for every result of every operation what it was made of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, tuple[StorageWeakRef, Made]] = {}  # a weak reference keeps its key from being used again

    def of(self, value: Any) -> Made:
        """What a value, however nested, was made of."""
        made = NOTHING
        for tensor in tensors_of(value):
            known = self._made.get(_reference(tensor).cdata)
            made = made.both(known[1]) if known else made
        return made

    def note(self, value: Any, made: Made) -> None:
        """Says what a value, however nested, is made of; what was known of it is forgotten."""
        for tensor in tensors_of(value):
            reference = _reference(tensor)
            self._made[reference.cdata] = (reference, made)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and notes its results."""
        keywords = kwargs or {}
        result = func(*args, **keywords)
        made = NOTHING if func._schema.name in SHAPE_ONLY else self.of((args, keywords))
        if made.roles:
            for tensor in tensors_of((result, *_written(func, args, keywords))):
                self.note(tensor, made.both(self.of(tensor)))
        return result


def follow(
    module: nn.Module,
    arguments: Mapping[str, Any],
    roles: Mapping[str, Collection[Tensor]],
    leaves: Mapping[str, nn.Module],
    temporal: Collection[str],
) -> Flow:
    """Runs a module's forward on keyword arguments and follows them through it.

    Args:
        module: its mode and weights stay as they are.
        arguments: keyword arguments, nested.
        roles: role to the tensors in the arguments that have it.
        leaves: modules to watch, by name.
        temporal: roles that the inputs of a temporal leaf may depend on.
    """
    allowed = frozenset(temporal)
    flow = _follow_once(module, arguments, roles, leaves, allowed, frozenset())
    mixed = frozenset(name for name, leaf in flow.leaves.items() if not leaf.roles <= allowed)
    if mixed & flow.cut:  # ran on the time first and on latents later, which only the end of a run can tell
        flow = _follow_once(module, arguments, roles, leaves, allowed, mixed)
    return flow


def _follow_once(
    module: nn.Module,
    arguments: Mapping[str, Any],
    roles: Mapping[str, Collection[Tensor]],
    leaves: Mapping[str, nn.Module],
    temporal: frozenset[str],
    mixed: frozenset[str],
) -> Flow:
    flow, follower = Flow(), Follower()
    for role, values in roles.items():
        for tensor in values:
            follower.note(tensor, Made(frozenset({role}), frozenset()).both(follower.of(tensor)))

    def watch(name: str, inputs: Any, output: Any) -> None:
        leaf = flow.leaves.setdefault(name, LeafFlow())
        made = follower.of(inputs)
        leaf.calls += 1
        leaf.roles |= made.roles
        leaf.reads |= made.leaves
        leaf.numbers = output.numel() if isinstance(output, Tensor) else 0
        if name in mixed:
            flow.frontier |= made.leaves
        elif made.roles and made.roles <= temporal:
            flow.cut.add(name)
            follower.note(output, Made(made.roles, frozenset({name})))

    with torch.no_grad(), _watched(leaves, watch), follower:
        output = module(**arguments)
    flow.frontier |= follower.of(output).leaves
    return flow


def _reference(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


@contextmanager
def _watched(leaves: Mapping[str, nn.Module], watch: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda _, args, kwargs, output: watch(name, (args, kwargs), output)

    handles = [leaf.register_forward_hook(hook(name), with_kwargs=True) for name, leaf in leaves.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operation changes in place."""
    if not func._schema.is_mutable:
        return
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)
