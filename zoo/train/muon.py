"""Muon beside Adam: matrices learn by orthogonalized momentum, all else by AdamW. Knows parameters by shape only.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; steps scaled to AdamW's as in Liu et al.
2025, "Muon is scalable for LLM training". A convolution's weight is a matrix of one row per output channel. torch.optim
has Muon for plain matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that drives all singular values towards 1, as published."""


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """The nearest matrix with all singular values near 1, [rows, columns], by Newton-Schulz in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    nearest: Tensor = (x.T if tall else x).to(matrix.dtype)
    return nearest


class Muon(torch.optim.Optimizer):
    """Updates of weights with two or more dimensions, at AdamW's rates."""

    def __init__(
        self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient; a closure is not called."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        kept = self.state[weight]
        if "momentum" not in kept:
            kept["momentum"] = torch.zeros_like(weight)
        momentum = kept["momentum"].lerp_(slope, 1 - group["momentum"])
        ahead = slope.lerp(momentum, group["momentum"]).flatten(1)
        size = 0.2 * max(ahead.shape) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonal(ahead).reshape(weight.shape), alpha=-group["lr"] * size)


class MuonAndAdam:
    """Muon for the matrices of a model; AdamW for its vectors, and for its ends, the layers named so."""

    def __init__(self, model: nn.Module, lr: float, ends: tuple[str, ...], weight_decay: float = 0.01) -> None:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, weight in model.named_parameters():
            plain = weight.ndim < 2 or min(weight.flatten(1).shape) == 1 or name.startswith(ends)
            (others if plain else matrices).append(weight)
        self._both: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr, weight_decay=weight_decay),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True),
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both; a rate set there is the rate of the next step."""
        return [group for one in self._both for group in one.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for one in self._both:
            one.zero_grad()

    def step(self) -> None:
        """One update of all weights."""
        for one in self._both:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"both": [one.state_dict() for one in self._both]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for one, kept in zip(self._both, state["both"], strict=True):
            one.load_state_dict(kept)
