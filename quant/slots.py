"""Slots: the distinct timesteps of a schedule, numbered as they first appear. Knows calls, not what runs them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from quant.backends.call import Call


class Slots:
    """Numbers timesteps as they come."""

    def __init__(self) -> None:
        self._slots: dict[float, int] = {}

    @property
    def schedule(self) -> tuple[float, ...]:
        """Timesteps so far; slot i stands for the i-th. Empty where no argument of any call was a timestep."""
        return tuple(self._slots)

    def of(self, call: Call) -> Tensor:
        """[B] int64: the slot of each row of a call, whose timesteps get slots if they have none."""
        if call.timestep is not None:
            values = call.timestep.detach().cpu().float().flatten().numpy()
            distinct, first = np.unique(values, return_index=True)
            for value in distinct[np.argsort(first)].tolist():
                self._slots.setdefault(value, len(self._slots))
        return slots_of(call, self._slots)


def slots_of(call: Call, slots: Mapping[float, int]) -> Tensor:
    """[B] int64: the slot of each row, by its largest timestep; all 0 where no argument is a timestep.

    Raises:
        KeyError: a timestep has no slot.
    """
    times = call.timestep
    if times is None:
        return torch.zeros(call.count, dtype=torch.int64)
    latest = times.float().flatten(1).amax(1) if times.ndim > 1 else times.float()
    return torch.tensor([slots[time] for time in latest.tolist()], dtype=torch.int64)
