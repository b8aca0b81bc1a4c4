"""One call of a denoiser as tensors and constants, and what runs calls. Must not know families, pipelines or queues."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from quant.clock import COND, UNCOND, StepClock
from quant.errors import BackendError
from quant.nesting import first_tensor

Role = Literal["time", "constant", "pooled", "text", "sample"]
"""What a tensor argument is: the timestep; one of few values per request (guidance, class, size); pooled text; text by
token with its masks; or latents and anything else.
"""


class Input(NamedTuple):
    """One tensor argument as compiled code sees it; `shape` is without the row dimension if `per_row`."""

    name: str
    per_row: bool
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """B rows of arguments for a module's forward, each row at its own time.

    Attributes:
        rows: tensors [B, ...] by argument name; a dot nests: "added_cond_kwargs.text_embeds"; a name that ends in []
            is an argument that takes a list of the rows: "x[]".
        clock: step and branch of each row.
        shared: tensors without a row dimension, equal for all rows, by name.
        constants: all other arguments by name (None, numbers, strings, lists).
        roles: what each tensor argument is, by name; one that is not named is a "sample".
        pattern: which attention modules share between branches, an index into a guidance plan's patterns. Above 0 the
            rows go in pairs: as many of either branch, the i-th conditional with the i-th unconditional one.
    """

    rows: Mapping[str, Tensor]
    clock: StepClock
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    pattern: int = 0

    def __post_init__(self) -> None:
        lengths = {name: tensor.shape[0] for name, tensor in self.rows.items()}
        if set(lengths.values()) != {self.clock.rows}:
            raise ValueError(f"every row tensor must have {self.clock.rows} rows as the clock has, got {lengths}")

    @property
    def count(self) -> int:
        """B, the number of rows."""
        return self.clock.rows

    def take(self, index: Tensor) -> Call:
        """The rows named by `index` [N] int64, in that order: a call of N rows."""
        rows = {name: tensor[index] for name, tensor in self.rows.items()}
        return replace(self, rows=rows, clock=self.clock.take(index))

    def role(self, name: str) -> Role:
        """What a tensor argument is."""
        return self.roles.get(name, "sample")

    @property
    def timestep(self) -> Tensor | None:
        """The tensor argument of role "time": [B], or [B, L] with one for each token; None where there is none."""
        return next((self.rows[name] for name in sorted(self.rows) if self.role(name) == "time"), None)

    @property
    def halves(self) -> int:
        """In how many parts of equal length, of a branch each, the rows must lie to run: 2 where they go in pairs."""
        return 2 if self.pattern else 1

    def pairs(self) -> Tensor:
        """[B / 2, 2] int64: the index of each conditional row, and of the unconditional row that goes with it.

        Raises:
            BackendError: the rows do not go in pairs.
        """
        cond, uncond = ((self.clock.branch == branch).nonzero().flatten() for branch in (COND, UNCOND))
        if len(cond) != len(uncond) or 2 * len(cond) != self.count:
            told = f"{len(cond)} conditional and {len(uncond)} unconditional rows of {self.count}"
            raise BackendError(f"attention is shared between pairs of rows, one of either branch; the call has {told}")
        for part in (self.clock.step, self.clock.total):
            if not torch.equal(part[cond], part[uncond]):
                raise BackendError(
                    "attention is shared between rows at one step; the call pairs rows of different steps"
                )
        return torch.stack([cond, uncond], dim=1)

    def parts(self, most: int) -> tuple[Tensor, ...]:
        """Indices of rows that are to run together, each row once: at most `most`, or one pair if that is less.

        Where rows go in pairs, a part has its conditional rows first and then, in the same order, their partners.

        Raises:
            BackendError: the call has a pattern, but its rows do not go in pairs.
        """
        if not self.pattern:
            return torch.split(torch.arange(self.count), most)
        return tuple(pairs.T.flatten() for pairs in torch.split(self.pairs(), max(1, most // 2)))

    def padded(self, count: int) -> Call:
        """The call with the first row of each half repeated until it has `count` rows."""
        own = self.count // self.halves
        filled = torch.cat([torch.arange(own), torch.zeros(count // self.halves - own, dtype=torch.int64)])
        return self.take(torch.cat([filled + half * own for half in range(self.halves)]))

    def unpadded(self, output: Tensor) -> Tensor:
        """The answer [B, ...] to this call out of the answer to it `padded`; may be a view."""
        halves = output.reshape(self.halves, -1, *output.shape[1:])
        return halves[:, : self.count // self.halves].flatten(0, 1)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, in the fixed order that compiled code takes them in."""
        return dict(sorted({**self.rows, **self.shared}.items()))

    def inputs(self) -> tuple[Input, ...]:
        """What compiled code depends on, for each of `tensors()` in that order."""
        return tuple(
            Input(name, name in self.rows, str(tensor.dtype), tuple(tensor.shape[1 if name in self.rows else 0 :]))
            for name, tensor in self.tensors().items()
        )

    def signature(self) -> str:
        """A short hash of everything but the number of rows and the values of tensors: equal for calls that one
        compiled graph can serve.
        """
        constants = sorted((name, repr(value)) for name, value in self.constants.items())
        text = repr((self.inputs(), constants, self.pattern))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by dotted name as the nested dictionary of a forward's keyword arguments."""
    arguments: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        place = arguments
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf.removesuffix("[]")] = list(value.unbind(0)) if leaf.endswith("[]") else value
    return arguments


def call_module(module: nn.Module, call: Call) -> Tensor:
    """What a torch module answers to a call: [B, ...]."""
    return first_tensor(module(**nested({**call.tensors(), **call.constants})))


def run_in_parts(call: Call, most: int, run: Callable[[Call], Tensor]) -> Tensor:
    """The answers [B, ...] of `run` to a call's `parts`, each row's where the row was.

    Raises:
        BackendError: the call has a pattern, but its rows do not go in pairs.
    """
    parts = call.parts(most)
    together = torch.cat([run(call.take(index)) for index in parts])
    return together[torch.argsort(torch.cat(parts))] if call.pattern else together


class Executable(Protocol):
    """A quantized denoiser that can run. Threads may share it."""

    @property
    def weights_bytes(self) -> int:
        """Bytes that its weights take in memory now, counted once per compiled copy."""

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table of the artifact knew."""

    def run(self, call: Call) -> Tensor:
        """The denoiser's output [B, ...] float32, in memory of its own.

        A row's answer depends on that row alone; where rows go in pairs, on its pair.
        """

    def close(self) -> None:
        """Lets go of compiled code and weights; the executable cannot run again."""
