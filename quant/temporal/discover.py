"""Finds the temporal information block of any denoiser by data flow, not by name. Must not know any model.

A leaf module is *temporal* when what reaches it depends on the timestep, request constants or pooled text, and on
nothing else: neither on latents nor on the text's tokens. To find them the model's own forward runs a few times with
some arguments replaced by fake tensors, which have shapes and no values: whatever depends on a fake is fake itself. So
dependence is exact, not judged by comparing numbers, and a model of any size can be examined without its weights.

Classes as in TFMQ-DM's setting, widened to transformers:
    E0  depends on the timestep alone: a finite table replaces it.
    E1  also on request constants (guidance, class, size): a table for each value.
    E2  also on pooled text: a table for each request.
A leaf is on the *frontier* when its output reaches anything but other temporal leaves: only frontiers need tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from quant.backends.call import Call, nested
from quant.errors import QuantError
from quant.layers import first_tensor

Category = Literal["E0", "E1", "E2"]


@dataclass(frozen=True, slots=True)
class TemporalLeaf:
    """One temporal module.

    Attributes:
        name: dotted name in the denoiser.
        kind: its class's name.
        category: what it depends on.
        frontier: whether anything that is not temporal reads its output.
        calls: how often one call of the denoiser runs it.
        parameters: numbers that it owns.
        width: numbers that it puts out for one timestep.
    """

    name: str
    kind: str
    category: Category
    frontier: bool
    calls: int
    parameters: int
    width: int


class UnknownStructure(QuantError):
    """The data flow of a model could not be followed; the message says where it stopped."""


@dataclass(slots=True)
class _Seen:
    """What one run saw of each leaf: how often it ran, whether on real values, and its outputs cut off the graph."""

    calls: dict[str, int] = field(default_factory=dict)
    real: set[str] = field(default_factory=set)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)


def discover(module: nn.Module, call: Call) -> tuple[TemporalLeaf, ...]:
    """The temporal leaves of a module for calls like this one (one row is enough), in the order of its modules.

    The module's parameters may be fake or real; its weights are never changed.

    Raises:
        UnknownStructure: its forward needs values of latents or text to decide what to run.
    """
    known = known_arguments(call)
    everything = known["sample"] | known["text"] | known["pooled"] | known["constant"] | known["time"]
    constant = _run(module, call, fake=everything).real
    seen, frontier = _frontier(module, call, fake=known["sample"] | known["text"])
    without_pooled = _run(module, call, fake=everything - known["constant"] - known["time"]).real
    time_only = _run(module, call, fake=everything - known["time"]).real
    return tuple(
        TemporalLeaf(
            name=name,
            kind=type(leaf).__name__,
            category="E0" if name in time_only else "E1" if name in without_pooled else "E2",
            frontier=name in frontier,
            calls=seen.calls[name],
            parameters=sum(parameter.numel() for parameter in leaf.parameters()),
            width=int(seen.outputs[name][-1].shape[-1]),
        )
        for name, leaf in leaves(module)
        if name in seen.real - constant
    )


def leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(dotted name, module) of every module without children that owns parameters or saved buffers."""
    for name, part in module.named_modules():
        owns = any(True for _ in part.parameters(recurse=False)) or bool(part.state_dict())
        if owns and not any(True for _ in part.children()):
            yield name, part


def known_arguments(call: Call) -> Mapping[str, frozenset[str]]:
    """Role to the names of a call's tensor arguments that have it."""
    roles = ("sample", "text", "pooled", "constant", "time")
    return {role: frozenset(name for name in call.tensors() if call.role(name) == role) for role in roles}


def fake_call(call: Call, fake: Collection[str], mode: FakeTensorMode) -> dict[str, Any]:
    """Keyword arguments of a forward, nested, with the tensors named in `fake` replaced by fake ones."""
    tensors = {name: mode.from_tensor(tensor) if name in fake else tensor for name, tensor in call.tensors().items()}
    return nested({**tensors, **call.constants})


def is_real(value: Any) -> bool:
    """Whether nothing in an argument, however nested, is a fake tensor."""
    if isinstance(value, FakeTensor):
        return False
    if isinstance(value, Mapping):
        return all(is_real(part) for part in value.values())
    return not isinstance(value, list | tuple) or all(is_real(part) for part in value)


def run_fake(module: nn.Module, call: Call, fake: Collection[str]) -> Any:
    """The module's own forward with some arguments fake; what depends on them is fake.

    Raises:
        UnknownStructure: the forward asks for the value of a fake.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        return module(**fake_call(call, fake, mode))
    except Exception as error:  # fake tensors fail in many ways, all of which mean the same
        kind = type(module).__name__
        raise UnknownStructure(f"{kind}: its data flow cannot be followed: {type(error).__name__}: {error}") from error


def _run(module: nn.Module, call: Call, fake: Collection[str]) -> _Seen:
    seen = _Seen()
    with torch.no_grad(), _watched(module, seen, lambda name, output: output):
        run_fake(module, call, fake)
    return seen


def _frontier(module: nn.Module, call: Call, fake: Collection[str]) -> tuple[_Seen, set[str]]:
    """What a run saw, and the leaves on real values whose output reaches the model's without another one between.

    Each such output is cut off from what made it and made a leaf of autograd's graph; those that the graph of the
    model's output leads back to are on the frontier.
    """
    seen = _Seen()

    def cut(name: str, output: Tensor) -> Tensor:
        own = output.detach().requires_grad_(output.is_floating_point())
        seen.outputs.setdefault(name, []).append(own)
        return own.view_as(own)  # a view: models may change it in place

    with torch.inference_mode(False), torch.enable_grad(), _watched(module, seen, cut):
        output = first_tensor(_unwrapped(run_fake(module, _own(call), fake)))
    origins = {id(own): name for name, cuts in seen.outputs.items() for own in cuts}
    return seen, {origins[variable] for variable in _variables(output) if variable in origins}


def _variables(output: Tensor) -> Iterator[int]:
    """Identities of the tensors that a result was made of, as far as gradients would flow."""
    todo, done = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in done:
            continue
        done.add(node)
        if hasattr(node, "variable"):
            yield id(node.variable)
        todo += [origin for origin, _ in node.next_functions]


def _own(call: Call) -> Call:
    """The call with every tensor as one that autograd may use, wherever it was made."""
    rows = {name: tensor.clone() for name, tensor in call.rows.items()}
    shared = {name: tensor.clone() for name, tensor in call.shared.items()}
    return Call(rows, call.clock, shared, call.constants, call.roles)


def _unwrapped(output: Any) -> Any:
    """What a model returned, without lists of one around the tensor."""
    while isinstance(output, list | tuple) and output and isinstance(output[0], list | tuple):
        output = output[0]
    return output


@contextmanager
def _watched(module: nn.Module, seen: _Seen, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Counts the leaves' calls, notes those on real values, and passes the outputs of those through `change`."""

    def hook(name: str) -> Any:
        def watch(_: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
            seen.calls[name] = seen.calls.get(name, 0) + 1
            if not (is_real(arguments) and is_real(keywords)) or not isinstance(output, Tensor):
                return None
            seen.real.add(name)
            return change(name, output)

        return watch

    handles = [leaf.register_forward_hook(hook(name), with_kwargs=True) for name, leaf in leaves(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
