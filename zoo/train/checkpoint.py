"""Checkpoints of a training stage: one file, written whole or not at all. Knows nothing of what it stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch


class Optimizer(Protocol):
    """What a stage asks of an optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """With the rate of the next step as `lr`."""

    def zero_grad(self) -> None:
        """Forget all gradients."""

    def step(self) -> Any:
        """One update of all weights."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from `state_dict`."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its final name, then rename it, so that a kill leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    torch.save(state, draft)
    draft.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint's state, or None when training has not started. Only tensors and plain values are read."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def learning_rate(step: int, steps: int, peak: float, *, warm: int = 200, decay: float = 0.25) -> float:
    """Warm-up, plateau, then a linear fall to zero over the last `decay` share of the steps."""
    falling = (steps - step) / max(1.0, decay * steps)
    return peak * max(0.0, min(1.0, (step + 1) / warm, falling))
