"""Attention that is computed for the conditional rows and used for the unconditional ones too.

DiTFastAttn (Yuan et al., NeurIPS 2024, "attention sharing across CFG"): the unconditional branch takes over the output
of the conditional branch's attention, so its projections to queries, keys and values, its map and its projection out
are left out alike. Ours: the modules are found by structure; what adds its own input to its output (the attention of
plain UNets) keeps that input and shares the rest; layers whose scales follow time keep the conditional rows' moment.

Must not know families of models, nor what chooses the modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quant.backends.call import Call, run_in_parts
from quant.backends.moment import PREFIX, holder_of, run_timed
from quant.clock import Moment, MomentHolder
from quant.errors import BackendError
from quant.guidance.maps import sharing_maps
from quant.nesting import tensors_of


@dataclass(frozen=True, slots=True)
class Patterns:
    """Which attention modules share, for each number that a call's `pattern` may be; the first is empty.

    With `maps`, they share the attention map only (TR-DQ), else their output.
    """

    names: tuple[tuple[str, ...], ...] = ((),)
    maps: bool = False

    def of(self, call: Call) -> tuple[str, ...]:
        """Names of the modules that share in a call.

        Raises:
            BackendError: there is no such pattern.
        """
        if not call.pattern:
            return ()
        if not 0 < call.pattern < len(self.names):
            raise BackendError(f"there is no sharing pattern {call.pattern}; known are 0 to {len(self.names) - 1}")
        return self.names[call.pattern]

    def key(self, call: Call) -> str:
        """What files of graphs traced for a call's pattern bear in their names; nothing where no module shares."""
        names = self.of(call)
        return f"-{hashlib.sha256(repr((names, self.maps)).encode()).hexdigest()[:16]}" if names else ""


NO_SHARING = Patterns()
"""Every module computes all rows."""


def attention_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Modules that project to queries, keys and values one by one (to_q, to_k, to_v), by name.

    Fused blocks that compute attention and feed-forward in one product are none: sharing would take over both.
    """
    wanted = ("to_q", "to_k", "to_v")
    return {name: part for name, part in module.named_modules() if all(hasattr(part, one) for one in wanted)}


def matching(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of attention modules that match one of several shell patterns, in the module's order.

    Raises:
        BackendError: a pattern matches none.
    """
    names = tuple(attention_modules(module))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise BackendError(f"no attention module matches {pattern!r}; there are {', '.join(names) or 'none'}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def refusals(module: nn.Module, call: Call) -> dict[str, str]:
    """Attention modules that cannot share in calls like this one, and why; runs two such calls of a few rows."""
    return {name: met.reason for name, met in _met(module, call).items() if met.reason}


def shared_call(module: nn.Module, call: Call, patterns: Sequence[Sequence[str]], *, maps: bool = False) -> Tensor:
    """What a torch module answers to a call, [B, ...], with the sharing that the call's pattern names.

    Args:
        module: its layers are bound to one holder of the moment, if any follows time.
        call: with a pattern above 0, rows in any order of which as many are of either branch.
        patterns: names of attention modules for each pattern.
        maps: whether they share the attention map only.

    Raises:
        BackendError: no such pattern; the rows do not go in pairs; a module cannot share.
    """
    known = Patterns(tuple(tuple(names) for names in patterns), maps)
    return run_in_parts(call, call.count, lambda part: run_shared(module, part, known))


def run_shared(module: nn.Module, call: Call, patterns: Patterns) -> Tensor:
    """`shared_call` of rows that lie in halves already, as `Call.parts` gives them."""
    with sharing(module, call, patterns):
        return run_timed(module, call.tensors(), call.constants)


@contextmanager
def sharing(module: nn.Module, call: Call, patterns: Patterns) -> Iterator[None]:
    """Within it the module shares as the call's pattern says, for calls like this one whose rows lie in halves.

    Raises:
        BackendError: no such pattern, or a module of it cannot share in such a call.
    """
    names = patterns.of(call)
    with ExitStack() as stack:
        if names and patterns.maps:
            stack.enter_context(sharing_maps({name: _found(module, name) for name in names}))
        elif names:
            met = _met(module, call)
            holder = holder_of(module) if any(name.startswith(PREFIX) for name in call.rows) else None
            for name in names:
                stack.enter_context(_halved(_found(module, name), _able(name, met), holder))
        yield


def _found(module: nn.Module, name: str) -> nn.Module:
    part = attention_modules(module).get(name)
    if part is None:
        raise BackendError(f"{type(module).__name__} has no attention module {name!r} that could share")
    return part


class _Met(NamedTuple):
    """How an attention module is called: which of its tensor arguments, in order, have a row for each of the call's."""

    rows: tuple[bool, ...] = ()
    reason: str = ""


def _able(name: str, met: dict[str, _Met]) -> tuple[bool, ...]:
    if met[name].reason:
        raise BackendError(f"attention module {name} cannot share between branches: {met[name].reason}")
    return met[name].rows


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, dict[str, _Met]]] = WeakKeyDictionary()
"""What was found out of a module's attention modules, by the signature of calls."""


def _met(module: nn.Module, call: Call) -> dict[str, _Met]:
    """By running calls of two and of four rows: a table of as many entries as a call has rows is told from rows."""
    known = _KNOWN.setdefault(module, {})
    if call.signature() not in known:
        try:
            few, more = (_shapes(module, call.take(torch.arange(count) % call.count)) for count in (2, 4))
        except (IndexError, RuntimeError, ValueError) as error:
            reason = f"the model does not run calls of two and four rows ({error})"
            return {name: _Met(reason=reason) for name in attention_modules(module)}
        known[call.signature()] = {name: _compared(few[name], more[name]) for name in few}
    return known[call.signature()]


Shapes = list[tuple[int, ...]]


def _shapes(module: nn.Module, call: Call) -> dict[str, list[Shapes]]:
    """Shapes of all tensor arguments of each attention module, for each time that it runs in a call."""
    seen: dict[str, list[Shapes]] = {name: [] for name in attention_modules(module)}

    def watch(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: seen[name].append([tuple(one.shape) for one in tensors_of((args, kwargs))])

    with ExitStack() as stack, torch.no_grad():
        for name, part in attention_modules(module).items():
            stack.callback(part.register_forward_pre_hook(watch(name), with_kwargs=True).remove)
        run_timed(module, call.tensors(), call.constants)
    return seen


def _compared(few: list[Shapes], more: list[Shapes]) -> _Met:
    if len(few) != 1 or len(more) != 1:
        return _Met(reason="it does not run" if not few else f"it runs {len(few)} times in a call")
    pairs = list(zip(few[0], more[0], strict=True))
    rows = tuple(a[:1] == (2,) and b[:1] == (4,) for a, b in pairs)
    if not rows or not rows[0]:
        return _Met(reason="the rows of its input are not those of the call")
    if any(a != b and not own for (a, b), own in zip(pairs, rows, strict=True)):
        return _Met(reason="an argument of it mixes the call's rows with other dimensions")
    return _Met(rows)


@contextmanager
def _halved(part: nn.Module, rows: tuple[bool, ...], holder: MomentHolder | None) -> Iterator[None]:
    """Within it a module computes on the first half of its rows and answers for both."""
    whole: list[Any] = []  # what is to be given back after the module ran: its input, and the moment

    def before(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        whole[:] = [next(tensors_of((args, kwargs))), holder.now if holder else None]
        if holder:
            holder.now = _first_rows(holder.now)
        own = iter(rows)
        return _changed((args, kwargs), lambda tensor: _first(tensor) if next(own) else tensor)  # type: ignore[no-any-return]

    def after(module: nn.Module, _: Any, output: Any) -> Any:
        x, moment = whole
        if holder:
            holder.now = moment
        if not getattr(module, "residual_connection", False):
            return _changed(output, lambda tensor: torch.cat([tensor, tensor]))
        half = x.shape[0] // 2
        other = output + (x[half:] - x[:half]) / getattr(module, "rescale_output_factor", 1.0)
        return torch.cat([output, other])

    handles = (part.register_forward_pre_hook(before, with_kwargs=True), part.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(tensor: Tensor) -> Tensor:
    return tensor[: tensor.shape[0] // 2]


def _first_rows(moment: Moment) -> Moment:
    parts = {part.name: getattr(moment, part.name) for part in fields(moment)}
    return replace(moment, **{name: _first(own) for name, own in parts.items() if own is not None})


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with every tensor changed, in the order of `tensors_of`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(part, change) for name, part in value.items()}
    return type(value)(_changed(part, change) for part in value) if isinstance(value, list | tuple) else value
