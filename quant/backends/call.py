"""One call of a denoiser as tensors and constants, and what runs calls. Must not know families, pipelines or queues."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from quant.clock import StepClock
from quant.layers import first_tensor

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
    """

    rows: Mapping[str, Tensor]
    clock: StepClock
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)

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

    def padded(self, count: int) -> Call:
        """The call with its first row repeated until it has `count` rows."""
        return self.take(torch.cat([torch.arange(self.count), torch.zeros(count - self.count, dtype=torch.int64)]))

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
        text = repr((self.inputs(), sorted((name, repr(value)) for name, value in self.constants.items())))
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


class Executable(Protocol):
    """A quantized denoiser that can run. Threads may share it."""

    @property
    def weights_bytes(self) -> int:
        """Bytes that its weights take in memory now, counted once per compiled copy."""

    @property
    def fallbacks(self) -> int:
        """Rows so far whose temporal features no table of the artifact knew."""

    def run(self, call: Call) -> Tensor:
        """The denoiser's output [B, ...] float32, in memory of its own; a row's answer depends on that row alone."""

    def close(self) -> None:
        """Lets go of compiled code and weights; the executable cannot run again."""
