"""Tensors inside nested values, as modules and torch functions take and give them. Must not know what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value, however nested in mappings, lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)


def first_tensor(output: Any) -> Tensor:
    """The tensor in what a model's forward returned: itself, the first of a tuple, or the first field of a dataclass.

    A list of the rows there is stacked.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if isinstance(output, list) and output and all(isinstance(row, Tensor) for row in output):
        output = torch.stack(output)
    if not isinstance(output, Tensor):
        raise TypeError(f"a model must return a tensor first, not {type(output).__name__}")
    return output
