"""How far a tensor is from the one that it stands for. Pure functions; must not know pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference|| over all elements; 0 when both are zero.

    Raises:
        ValueError: the shapes differ.
    """
    return float(relative_errors(value[None], reference[None])[0])


def relative_errors(value: Tensor, reference: Tensor) -> Tensor:
    """[B] float64 relative error of each row of [B, ...]; 0 for rows that are zero in both.

    Raises:
        ValueError: the shapes differ.
    """
    if value.shape != reference.shape:
        raise ValueError(f"{tuple(value.shape)} and {tuple(reference.shape)} cannot be compared")
    difference = (value.double() - reference.double()).flatten(1).norm(dim=1)
    size = reference.double().flatten(1).norm(dim=1)
    return torch.where(difference == 0, difference, difference / size)
