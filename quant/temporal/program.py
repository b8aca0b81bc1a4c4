"""The part of a denoiser that time decides, run by the denoiser's own code and alone. Must not know any model.

Its casts, shifts and per-token timesteps are thereby those of the model. Only temporal leaves need weights: all other
parameters may be on the meta device. The model's forward runs once for each kind of call on fake latents and text, that
costs no arithmetic; what it does with real tensors is recorded and played from then on.

Assumed: temporal features do not depend on the shapes of latents and text (numbers read from those are constants of the
recording). Source: "Temporal Feature Matters" (TPAMI 2025) for what is to be computed; the way is ours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from quant.backends.call import Call, nested
from quant.clock import Moment
from quant.errors import QuantError
from quant.temporal.discover import TemporalLeaf, UnknownStructure
from quant.temporal.discover import leaves as leaves_of
from quant.temporal.record import ReadsValues, Recorder
from quant.temporal.tape import Apply, LeafCall, Tape

MAX_TAPES = 64
"""Recordings that are kept; each is a short list."""

TIMED = ("time", "constant", "pooled")
"""Roles of the arguments that temporal features depend on."""


class TemporalProgram:
    """Computes temporal features of calls. One thread at a time.

    Attributes:
        module: the denoiser; its temporal leaves hold weights.
        names: its temporal leaves, in the order of its modules.
        frontier: those of them that anything else reads.
    """

    def __init__(self, module: nn.Module, leaves: Sequence[TemporalLeaf]) -> None:
        """Raises:
        QuantError: a temporal leaf is not there or has no weights.
        """
        self.module = module
        self.names = tuple(leaf.name for leaf in leaves)
        self.frontier = frozenset(leaf.name for leaf in leaves if leaf.frontier)
        self._tapes: OrderedDict[Any, Tape | None] = OrderedDict()
        for name, leaf in self.layers().items():
            if any(tensor.is_meta for tensor in (*leaf.parameters(), *leaf.buffers())):
                raise QuantError(f"temporal layer {name} has no weights: load them before computing features")

    def layers(self) -> dict[str, nn.Module]:
        """Name to what stands in each temporal leaf's place now.

        Raises:
            QuantError: the module has no such layer.
        """
        try:
            return {name: self.module.get_submodule(name) for name in self.names}
        except AttributeError as error:
            raise QuantError(
                f"{type(self.module).__name__} is not the module of these temporal layers: {error}"
            ) from error

    def run(self, call: Call, apply: Apply | None = None, moment: Moment | None = None) -> dict[str, Tensor]:
        """Frontier leaf to its output [..., width] for a call's time, constants and pooled text; gradients flow.

        A leaf that runs several times has its later outputs under `name#2`, `name#3`.

        Args:
            call: its latents and text are not looked at beyond shape, dtype and device.
            apply: runs the leaves instead of their own forward.
            moment: what layers that depend on slots read meanwhile.

        Raises:
            UnknownStructure: what the leaves are fed cannot be known without latents, text or other weights.
        """
        with _at(moment, self.layers().values()):
            calls, outputs = self._outputs(call, apply)
        return {
            name: output for name, output in _named(calls, outputs).items() if name.partition("#")[0] in self.frontier
        }

    def leaf_calls(self, call: Call, moment: Moment | None = None) -> tuple[LeafCall, ...]:
        """How leaves are called, in order, in calls like this one."""
        with _at(moment, self.layers().values()), torch.no_grad():
            tape = self._tape(call)
            return tape.leaf_calls if tape else self._outputs(call, None)[0]

    def _outputs(self, call: Call, apply: Apply | None) -> tuple[tuple[LeafCall, ...], list[Tensor]]:
        tape = self._tape(call)
        if tape is not None:
            return tape.leaf_calls, tape.play(_timed_tensors(call), self.layers(), apply)
        recorder = self._record(call, apply, torch.is_grad_enabled())
        return tuple(recorder.calls), recorder.outputs

    def _tape(self, call: Call) -> Tape | None:
        """The recording for calls of this kind; None where what is done depends on values."""
        key = _key(call)
        if key not in self._tapes:
            self._tapes[key] = self._new_tape(call)
        self._tapes.move_to_end(key)
        while len(self._tapes) > MAX_TAPES:
            self._tapes.popitem(last=False)
        return self._tapes[key]

    def _new_tape(self, call: Call) -> Tape | None:
        recorder = self._record(call, None, grad=False)
        try:
            tape = recorder.tape()
        except ReadsValues:
            return None
        with torch.no_grad():
            again = tape.play(_timed_tensors(call), self.layers(), None)
        same = [
            torch.equal(one.nan_to_num(), other.nan_to_num())
            for one, other in zip(again, recorder.outputs, strict=True)
        ]
        return tape if all(same) else None

    def _record(self, call: Call, apply: Apply | None, grad: bool) -> Recorder:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            inputs = {name: call.tensors()[name].clone() for name in _timed_names(call)}
            arguments = nested({**_fakes(call, mode), **inputs, **call.constants})
            recorder = Recorder(mode, list(inputs.values()))
            watched = {**dict(leaves_of(self.module)), **self.layers()}
            try:
                with recorder.watching(watched, apply), recorder:
                    functional_call(self.module, _substitutes(self.module, call, mode), (), arguments)
            except Exception as error:  # fake tensors fail in many ways, all of which mean the same
                kind = type(self.module).__name__
                raise UnknownStructure(
                    f"{kind}: its data flow cannot be followed, leave its temporal layers float: "
                    f"{type(error).__name__}: {error}"
                ) from error
        missed = sorted(set(self.names) - {one.name for one in recorder.calls})
        if missed:
            raise UnknownStructure(
                f"{type(self.module).__name__}: nothing known reaches {', '.join(missed[:5])} in such a call; it has "
                "either other arguments than those that the layers were found with, or weights between them are missing"
            )
        return recorder


def _timed_names(call: Call) -> tuple[str, ...]:
    return tuple(name for name in call.tensors() if call.role(name) in TIMED)


def _timed_tensors(call: Call) -> list[Tensor]:
    tensors = call.tensors()
    return [tensors[name] for name in _timed_names(call)]


def _key(call: Call) -> Any:
    """Equal for calls that do the same with their time, constants and pooled text."""
    tensors = call.tensors()
    timed = tuple((name, tuple(tensors[name].shape)) for name in _timed_names(call))
    dtypes = tuple((name, tensor.dtype, tensor.device) for name, tensor in tensors.items())
    constants = tuple(sorted((name, repr(value)) for name, value in call.constants.items()))
    return call.count, timed, dtypes, constants, torch.is_autocast_enabled("cpu")


def _fakes(call: Call, mode: FakeTensorMode) -> dict[str, Tensor]:
    with mode:
        return {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for name, tensor in call.tensors().items()
            if call.role(name) not in TIMED
        }


def _substitutes(module: nn.Module, call: Call, mode: FakeTensorMode) -> dict[str, Tensor]:
    """Fake tensors, where the call's are, for parameters and buffers without values."""
    device = next(iter(call.tensors().values())).device
    everything = (*module.named_parameters(), *module.named_buffers())
    with mode:
        return {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in everything
            if tensor.is_meta
        }


def _named(calls: Sequence[LeafCall], outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for call, output in zip(calls, outputs, strict=True):
        count[call.name] = count.get(call.name, 0) + 1
        named[call.name if count[call.name] == 1 else f"{call.name}#{count[call.name]}"] = output
    return named


@contextmanager
def _at(moment: Moment | None, layers: Any) -> Iterator[None]:
    """Has layers read a moment for a while."""
    holders: Mapping[int, Any] = {id(layer.holder): layer.holder for layer in layers if hasattr(layer, "holder")}
    for holder in holders.values() if moment is not None else ():
        holder.now = moment
    try:
        yield
    finally:
        for holder in holders.values() if moment is not None else ():
            holder.now = None
