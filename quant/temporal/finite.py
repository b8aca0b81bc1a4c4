"""The finite set of a schedule's timesteps, with given constants and pooled texts, as a call. Must not know layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quant.backends.call import Call
from quant.clock import UNKNOWN, Moment
from quant.temporal.program import TIMED


@dataclass(frozen=True, slots=True)
class FiniteSet:
    """All that temporal layers are ever fed, as one call whose rows go through slot after slot.

    Attributes:
        call: slots * samples rows.
        slots: how many slots there are.
    """

    call: Call
    slots: int

    @classmethod
    def of(cls, calls: Sequence[Call]) -> FiniteSet:
        """The set of some calls.

        Raises:
            ValueError: there are none, or they differ in their number of rows.
        """
        counts = {call.count for call in calls}
        if len(counts) != 1 or counts == {0}:
            raise ValueError(f"the finite set takes calls of equally many rows, got {sorted(counts) or 'none'}")
        if len(calls) == 1:
            return cls(calls[0], calls[0].count)
        first, rows = calls[0], len(calls) * calls[0].count
        whole = take_timed(first, torch.zeros(rows, dtype=torch.int64))
        timed = {name: torch.cat([call.rows[name] for call in calls]) for name in first.rows if is_timed(first, name)}
        return cls(replace(whole, rows={**whole.rows, **timed}), len(calls))

    @property
    def moment(self) -> Moment:
        """Where its rows stand."""
        slot = torch.arange(self.slots).repeat_interleave(self.call.count // self.slots)
        return Moment(slot, torch.full_like(slot, UNKNOWN), slot, torch.ones_like(slot, dtype=torch.bool))

    def by_slot(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs as [slots, samples, width] float32."""
        samples = self.call.count // self.slots
        return {name: one.detach().float().reshape(self.slots, samples, -1) for name, one in features.items()}


def is_timed(call: Call, name: str) -> bool:
    """Whether temporal features may depend on that argument."""
    return call.role(name) in TIMED


def take_timed(call: Call, index: Tensor) -> Call:
    """Rows of a call as far as temporal features depend on them; latents and text are those of the first row."""
    rows = {
        name: tensor[index] if is_timed(call, name) else tensor[:1].expand(len(index), *tensor.shape[1:])
        for name, tensor in call.rows.items()
    }
    return replace(call, rows=rows, clock=call.clock.take(index))
