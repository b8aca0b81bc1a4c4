"""All tensors of a nested value are found, in order, and nothing else; so is the first."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from quant.nesting import first_tensor, tensors_of


class Pair(NamedTuple):
    one: Tensor
    two: int


def test_tensors_are_found_in_order() -> None:
    a, b, c, d = (torch.ones(size) for size in range(1, 5))
    found = list(tensors_of(({"x": [a, None], "y": "text"}, Pair(b, 3), [[c], {"z": (d,)}], 2.5)))
    assert [tensor.shape[0] for tensor in found] == [1, 2, 3, 4]
    assert all(one is other for one, other in zip(found, (a, b, c, d), strict=True))
    assert list(tensors_of({"x": {1}})) == []


def test_the_tensor_of_an_output() -> None:
    tensor = torch.ones(2)
    for output in (tensor, (tensor, 3), [tensor], {"sample": tensor}):
        assert first_tensor(output) is tensor
    with pytest.raises(TypeError, match="must return a tensor first, not str"):
        first_tensor("sample")
