"""How far tensors are from those that they stand for: relative errors, and what quantization does to temporal features.

Pure functions; must not know pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Features = Mapping[str, Tensor]
"""Outputs of modules that depend on time, by dotted name: [N, width], one row for each of N steps."""

ROUNDING = 1e-12
"""Cosines of float64 that differ by less are equal: rounding depends on the order of additions."""


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


def temporal_cosines(quantized: Features, reference: Features) -> dict[str, Tensor]:
    """cos(q_k, f_k) of every module and step: [N] float64 by module; 1 where both rows are zero, 0 where one is.

    TFMQ-DM (Huang et al., CVPR 2024), the first symptom of temporal feature disturbance: this drops.

    Raises:
        ValueError: the modules or shapes differ, or there are none.
    """
    _require_same_modules(quantized, reference)
    return {name: _cosines(quantized[name], reference[name]).diagonal().clone() for name in reference}


def temporal_mismatches(quantized: Features, reference: Features) -> dict[str, Tensor]:
    """Where a quantized feature says the wrong time: [N] bool by module, whether another step's float feature is more
    similar to the quantized one of step k than that of step k, max over j of cos(q_k, f_j) > cos(q_k, f_k).

    TFMQ-DM (Huang et al., CVPR 2024), the second symptom: temporal information mismatch. Steps whose float features
    are equal cannot be told apart and do not count.

    Raises:
        ValueError: the modules or shapes differ, or there are none.
    """
    _require_same_modules(quantized, reference)
    found = {}
    for name in reference:
        cosines = _cosines(quantized[name], reference[name])
        found[name] = cosines.max(dim=1).values > cosines.diagonal() + ROUNDING
    return found


def _cosines(quantized: Tensor, reference: Tensor) -> Tensor:
    """[N, N] float64: row k, column j is cos(q_k, f_j)."""
    q, f = quantized.double(), reference.double()
    q_size, f_size = q.norm(dim=1), f.norm(dim=1)
    sizes = q_size[:, None] * f_size[None, :]
    both_zero = (q_size[:, None] == 0) & (f_size[None, :] == 0)
    return torch.where(sizes > 0, q @ f.T / sizes.clamp(min=torch.finfo(torch.float64).tiny), both_zero.double())


def _require_same_modules(quantized: Features, reference: Features) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in some.items()} for some in (quantized, reference)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"temporal features of {shapes[0]} cannot be compared with those of {shapes[1]}")
    if broken := [name for some in (quantized, reference) for name, rows in some.items() if not rows.isfinite().all()]:
        raise ValueError(f"temporal features must be finite; those of {', '.join(broken)} are not")
    if wrong := [name for name, shape in shapes[0].items() if len(shape) != 2]:
        raise ValueError(f"temporal features are [steps, width]; those of {', '.join(wrong)} are not")
