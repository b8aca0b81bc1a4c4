"""Captures what units of a model are fed and what they put out, one unit after another. Must not know how units learn.

Two forwards of every chunk of rows wait side by side: a float one, which stops after a unit and gives its output, and
one with the quantized form of all finished units, which stops before it and gives its input (TFMQ-DM's `asym`). Each
goes on from where it stopped, so all captures together cost two forwards, however many units there are. Forwards that
would hold more memory than the budget has are started anew for each unit instead, and left at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quant.backends.call import Call, call_module
from quant.blocks import Unit
from quant.errors import QuantError
from quant.samples import Samples
from quant.stacks import Layout, NotByRows, Stack, StackBuilder, examine
from quant.waiting import Waiting

Compute = Callable[[Tensor], Tensor]
"""A layer's forward."""
Mode = Literal["float", "quantized"]


@dataclass(slots=True)
class _Chunk:
    """Rows that run together, and their forwards that wait.

    Attributes:
        part: which of the samples' calls the rows are of.
        keeps: whether there is memory for forwards to wait.
    """

    call: Call
    part: int
    keeps: bool = False
    waiting: dict[Mode, Waiting] = field(default_factory=dict)


class Sweep:
    """Goes through the units of a model in order. A context: within it the model's layers compute what the sweep says.

    Args:
        module: the float model; as before afterwards.
        units: in the order in which they run.
        quantized: the layers' quantized forms, by name.
        samples: rows to run.
        chunk: rows of a forward.
        memory_bytes: what captures and waiting forwards may take together, about.
        seed: of the order of rows.
    """

    def __init__(
        self,
        module: nn.Module,
        units: Sequence[Unit],
        quantized: Mapping[str, nn.Module],
        samples: Samples,
        *,
        chunk: int,
        memory_bytes: int,
        seed: int,
    ) -> None:
        self._module, self._units, self._quantized = module, units, quantized
        self._budget = memory_bytes
        self._chunks = _chunks(samples, chunk, _device(module), seed)
        self._layouts: dict[str, Layout | None] = {}
        self._done: set[str] = set()
        self._own: Mapping[str, Compute] = {}
        self._mode: Mode = "float"
        self._running: Waiting | None = None
        self._target = ""
        self._caught: Any = None
        self._undo = ExitStack()

    def __enter__(self) -> Sweep:
        with ExitStack() as stack:
            stack.callback(_restore_training, {part: part.training for part in self._module.modules()})
            self._module.eval()
            self._layouts = examine(self._module, [unit.name for unit in self._units], self._chunks[0].call)
            self._plan_memory()
            for name in self._quantized:
                stack.callback(self._take_over(name, self._module.get_submodule(name)))
            for unit in self._units:
                part = self._module.get_submodule(unit.name)
                stack.callback(part.register_forward_pre_hook(self._before(unit.name), with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(self._after(unit.name)).remove)
            stack.callback(self._abandon)
            self._undo = stack.pop_all()
        return self

    def __exit__(self, *fault: object) -> None:
        self._undo.close()

    def finish(self, unit: Unit) -> None:
        """From here on the unit's layers are quantized in what later units are fed."""
        self._done.update(unit.layers)

    @contextmanager
    def computing(self, own: Mapping[str, Compute]) -> Iterator[None]:
        """Within it layers compute what `own` says by name."""
        self._own = own
        try:
            yield
        finally:
            self._own = {}

    def capture(self, unit: Unit) -> list[Stack]:
        """What the unit is fed and should put out: a stack for each signature of calls that reaches it.

        Only as many rows as the memory budget has room for; they are spread over all steps.

        Raises:
            NotByRows: its tensors do not follow rows.
            QuantError: its float output holds NaN or infinity.
        """
        layout = self._layouts[unit.name]
        if layout is None:
            raise NotByRows("its arguments or outputs cannot be cut into rows")
        builders: dict[int, StackBuilder] = {}
        for chunk in self._within_budget(layout):
            output = self._advance(chunk, "float", unit.name)
            arguments = self._advance(chunk, "quantized", unit.name)
            if output is not None and arguments is not None:
                builders.setdefault(chunk.part, StackBuilder(layout)).add(chunk.call.count, arguments, output)
        stacks = [builder.stack() for builder in builders.values()]
        if not all(bool(torch.isfinite(target).all()) for stack in stacks for target in stack.targets):
            raise QuantError(f"{unit.name}: its float output holds NaN or infinity")
        return stacks

    def _within_budget(self, layout: Layout) -> Iterator[_Chunk]:
        room = self._budget // max(1, layout.row_bytes)
        for index, chunk in enumerate(self._chunks):
            room -= chunk.call.count
            if room >= 0 or index == 0:
                yield chunk

    def _plan_memory(self) -> None:
        """Marks the chunks whose forwards may wait: those that fit beside the largest captures."""
        layouts = [layout for layout in self._layouts.values() if layout is not None]
        captured = max((layout.row_bytes for layout in layouts), default=0)
        held = max((layout.held for layout in layouts), default=0)
        room = self._budget - captured * sum(chunk.call.count for chunk in self._chunks)
        for chunk in self._chunks:
            room -= 2 * held * chunk.call.count
            chunk.keeps = room >= 0

    def _advance(self, chunk: _Chunk, mode: Mode, target: str) -> Any:
        """What a forward of a chunk comes by at a unit; None if it never gets there."""
        went_on = chunk.waiting.pop(mode, None)
        for run in ([went_on] if went_on else []) + [Waiting(lambda: call_module(self._module, chunk.call))]:
            self._mode, self._target, self._running, self._caught = mode, target, run, None
            try:
                run.go_on()
            finally:
                self._running = None
            if not run.finished:
                chunk.waiting[mode] = run
                break
        if not chunk.keeps:
            self._leave(chunk)
        return self._caught

    def _take_over(self, name: str, layer: nn.Module) -> Callable[[], None]:
        """Has a layer compute what the sweep says; returns what undoes it."""
        before, of_its_own = layer.forward, "forward" in layer.__dict__

        def forward(input: Tensor) -> Tensor:
            compute = self._own.get(name)
            if compute is None and self._mode == "quantized" and name in self._done:
                compute = self._quantized[name]
            return (compute or before)(input)

        layer.forward = forward
        return lambda: setattr(layer, "forward", before) if of_its_own else delattr(layer, "forward")

    def _before(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._catch(name, "quantized", (arguments, keywords))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self._catch(name, "float", output)

        return hook

    def _catch(self, name: str, mode: Mode, value: Any) -> None:
        if self._running is not None and self._mode == mode and self._target == name:
            self._caught = value
            self._running.wait()

    def _leave(self, chunk: _Chunk) -> None:
        for run in chunk.waiting.values():
            run.abandon()
        chunk.waiting.clear()

    def _abandon(self) -> None:
        for chunk in self._chunks:
            self._leave(chunk)


def _chunks(samples: Samples, size: int, device: torch.device, seed: int) -> list[_Chunk]:
    """All rows in chunks of at most `size`, each of one signature and of rows from anywhere; in any order."""
    generator = torch.Generator().manual_seed(seed)
    chunks = []
    for part, call in enumerate(samples.calls):
        for rows in torch.split(torch.randperm(call.count, generator=generator), size):
            chunks.append(_Chunk(_moved(call.take(rows), device), part))
    return [chunks[index] for index in torch.randperm(len(chunks), generator=generator).tolist()]


def _moved(call: Call, device: torch.device) -> Call:
    rows = {name: tensor.to(device) for name, tensor in call.rows.items()}
    return replace(call, rows=rows, shared={name: tensor.to(device) for name, tensor in call.shared.items()})


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _restore_training(training: Mapping[nn.Module, bool]) -> None:
    for part, was in training.items():
        part.training = was
