"""Finds the temporal information block of any denoiser by data flow, not by name. Must not know any model.

A leaf module is *temporal* when what reaches it depends on the timestep, request constants or pooled text, and on
nothing else: neither on latents nor on the text's tokens. To find them the model's own forward runs once while every
operation is followed (flow.py), with latents and text as fake tensors, which have shapes and no values. So dependence
is exact, not judged by comparing numbers, and a model of any size can be examined without its weights. A forward that
needs values of latents or text to decide what to run cannot be followed: nothing of it is held for temporal.

Classes as in TFMQ-DM's setting, widened to transformers:
    E0  depends on the timestep alone: a finite table replaces it.
    E1  also on request constants (guidance, class, size): a table for each value.
    E2  also on pooled text: a table for each request.
A leaf is on the *frontier* when its output reaches anything but other temporal leaves: only frontiers need tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from quant.backends.call import Call, nested
from quant.errors import QuantError
from quant.temporal.flow import Flow, follow

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


SAMPLED = frozenset({"sample", "text"})
"""Roles of arguments that a temporal leaf may not depend on."""

TEMPORAL = frozenset({"time", "constant", "pooled"})
"""Roles of arguments that a temporal leaf may depend on."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """What is known of a module's temporal leaves.

    Attributes:
        leaves: they, in the order of the module's parts.
        per_request: names of the leaves of class E2 and of those that they read: no table outlasts a request, so their
            weights are needed again for the next one.
        unknown: why the flow could not be followed, and nothing is held for temporal; empty where it could.
    """

    leaves: tuple[TemporalLeaf, ...]
    per_request: frozenset[str] = frozenset()
    unknown: str = ""


def examine(module: nn.Module, call: Call) -> Discovery:
    """What can be known of any module's temporal leaves; one whose flow cannot be followed has none."""
    try:
        return follow_call(module, call)
    except UnknownStructure as error:
        return Discovery((), unknown=str(error))


def discover(module: nn.Module, call: Call) -> tuple[TemporalLeaf, ...]:
    """The temporal leaves of a module for calls like this one (one row is enough), in the order of its modules.

    The module's parameters may be fake or real; its weights are never changed.

    Raises:
        UnknownStructure: its forward fails on such a call, or needs values of latents or text to decide what to run.
    """
    return follow_call(module, call).leaves


def follow_call(module: nn.Module, call: Call) -> Discovery:
    """What one run shows of a module's temporal leaves, with latents and text fake.

    Raises:
        UnknownStructure: as `discover`.
    """
    mode, parts = _mode(module), dict(leaves(module))
    with torch.inference_mode(False):
        own = _own(call)
        flat = {name: mode.from_tensor(t) if own.role(name) in SAMPLED else t for name, t in own.tensors().items()}
        roles = {role: [flat[name] for name in names] for role, names in known_arguments(own).items()}
        try:
            flow = follow(module, nested({**flat, **own.constants}), roles, parts, TEMPORAL)
        except Exception as error:  # fake tensors fail in many ways, all of which mean the same
            raise _unknown(module, error) from error
    times = sum(tensor.numel() for tensor in roles["time"]) or call.count
    found = tuple(
        TemporalLeaf(
            name=name,
            kind=type(part).__name__,
            category=_category(flow.leaves[name].roles),
            frontier=name in flow.frontier,
            calls=flow.leaves[name].calls,
            parameters=sum(parameter.numel() for parameter in part.parameters()),
            width=flow.leaves[name].numbers // (times if "time" in flow.leaves[name].roles else call.count),
        )
        for name, part in parts.items()
        if name in flow.leaves and flow.leaves[name].roles and flow.leaves[name].roles <= TEMPORAL
    )
    return Discovery(found, _with_origins(flow, {leaf.name for leaf in found if leaf.category == "E2"}))


def _with_origins(flow: Flow, names: set[str]) -> frozenset[str]:
    """Leaves, and all those that they read, directly or through others."""
    done: set[str] = set()
    while todo := names - done:
        done |= todo
        names = names.union(*(flow.leaves[name].reads for name in todo))
    return frozenset(done)


def _mode(module: nn.Module) -> FakeTensorMode:
    """The mode that a module's fake parameters belong to, which its arguments must share, or a new one."""
    fakes = (parameter for parameter in module.parameters() if isinstance(parameter, FakeTensor))
    found = next(fakes, None)
    return FakeTensorMode(allow_non_fake_inputs=True) if found is None else found.fake_mode


def _category(roles: frozenset[str]) -> Category:
    return "E2" if "pooled" in roles else "E1" if "constant" in roles else "E0"


def _unknown(module: nn.Module, error: Exception) -> UnknownStructure:
    kind, reason = type(module).__name__, next(iter(str(error).splitlines()), "")
    return UnknownStructure(f"{kind}: its data flow cannot be followed: {type(error).__name__}: {reason}")


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


def _own(call: Call) -> Call:
    """The call with every tensor in storage of its own: what is known of one must not be taken for another."""
    rows = {name: tensor.clone() for name, tensor in call.rows.items()}
    shared = {name: tensor.clone() for name, tensor in call.shared.items()}
    return Call(rows, call.clock, shared, call.constants, call.roles)
