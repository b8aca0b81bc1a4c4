"""Calls of a denoiser on disk, with what the float model answered: safetensors and JSON. Must not know readers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import quant

CLOCK = ("step", "total", "branch")
"""What a clock holds."""


@dataclass(frozen=True)
class Answered:
    """A call, and the float module's output [B, ...] float32."""

    call: quant.Call
    answer: Tensor


def save_calls(path: Path, answered: Sequence[Answered]) -> None:
    """Writes calls in order; the file appears whole or not at all.

    Raises:
        TypeError: a constant of a call is nothing that JSON knows.
    """
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for number, one in enumerate(answered):
        call = one.call
        parts = {"rows": call.rows, "shared": call.shared}
        parts["clock"] = {name: getattr(call.clock, name) for name in CLOCK}
        parts["answer"] = {"": one.answer}
        for part, named in parts.items():
            tensors |= {f"{number}/{part}/{name}": value.detach().clone().contiguous() for name, value in named.items()}
        told.append({"constants": dict(call.constants), "roles": dict(call.roles), "pattern": call.pattern})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"calls": json.dumps(told)})
    partial.replace(path)


def load_calls(path: Path) -> list[Answered]:
    """The calls of a file, in order."""
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["calls"])
        parts: list[dict[str, dict[str, Tensor]]] = [{} for _ in told]
        for key in file.keys():  # noqa: SIM118  (it is no dictionary)
            number, part, name = key.split("/", 2)
            parts[int(number)].setdefault(part, {})[name] = file.get_tensor(key)
    return [_answered(tensors, facts) for tensors, facts in zip(parts, told, strict=True)]


def _answered(parts: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> Answered:
    clock = quant.StepClock(*(parts["clock"][name] for name in CLOCK))
    return Answered(quant.Call(parts["rows"], clock, parts.get("shared", {}), **facts), parts["answer"][""])
