"""Relative errors, row by row and together."""

from __future__ import annotations

import pytest
import torch

from quant.metrics import relative_error, relative_errors


def test_errors_are_relative_to_the_reference() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    value = reference + torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, -1.0]])
    assert relative_errors(value, reference).tolist() == [0.1, 0.0, 1.0]
    assert relative_error(value, reference) == pytest.approx((1.25 / 26) ** 0.5)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        relative_error(torch.ones(2), torch.ones(3))
