"""Keeps a bounded, balanced choice of the rows that a model was called with, to reconstruct layers on. Knows no layers.

A weighted reservoir. The rows of one time and branch (a stratum) are put in random order; the i-th of them has priority
(i + u) / w, with w the stratum's weight and u a random offset of its own. The `count` rows of least priority stay. So
strata hold rows in proportion to their weights, to within one row, and what a short stratum lacks goes to the others.
A row's priority never falls as more rows come, so dropping it at once is the same as choosing at the end.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from quant.backends.call import Call
from quant.clock import StepClock

NORMAL_MEAN, NORMAL_DEVIATION = 0.4, 0.4
"""Of timesteps as a share of all steps, 0 being the clean picture: PTQ4DM's script for ImageNet 64x64, DDIM."""


@dataclass(frozen=True, slots=True)
class SampleWish:
    """How many rows to keep, and how they spread over time.

    `timesteps`: "uniform" wants as many of each step (Q-Diffusion, Li et al., ICCV 2023, section 4.2); "normal" as many
    as a normal law of mean 0.4 T and deviation 0.4 T has at each, what lies outside counted to the nearest end (PTQ4DM,
    Shang et al., CVPR 2023, section 3.3). Fewer rows than `count` are kept where so many would take more than `bytes`:
    rows of the largest models are 8 MB each.
    """

    count: int
    timesteps: Literal["uniform", "normal"] = "uniform"
    bytes: int = 2 << 30


class Samples:
    """Rows to reconstruct on: calls of many rows, those of one signature together, in the order in which they came.

    `missed` is how many rows more were wished for and seen, which memory had no room for.
    """

    def __init__(self, calls: tuple[Call, ...], missed: int = 0) -> None:
        self._calls, self._missed = calls, missed
        self._draw: Callable[[], Samples] | None = None

    @classmethod
    def later(cls, draw: Callable[[], Samples]) -> Samples:
        """Samples that are drawn when they are first asked for: a build that goes on may not need them again."""
        samples = cls(())
        samples._draw = draw
        return samples

    @property
    def calls(self) -> tuple[Call, ...]:
        """The rows."""
        self._drawn()
        return self._calls

    @property
    def missed(self) -> int:
        """Rows that memory had no room for."""
        self._drawn()
        return self._missed

    @property
    def count(self) -> int:
        """Rows in all."""
        return sum(call.count for call in self.calls)

    def _drawn(self) -> None:
        if self._draw is not None:
            drawn = self._draw()
            self._calls, self._missed, self._draw = drawn.calls, drawn.missed, None


def normal_share(step: int, total: int) -> float:
    """Share of step `step` of `total` under "normal". Step 0 is nearest to noise, so its timestep is t = total - 1.

    t = clamp(int(x), 0, T - 1) with x drawn from N(0.4 T, 0.4 T), as PTQ4DM's code draws it.
    """
    t = total - 1 - step
    below = 0.0 if t <= 0 else _cumulative(t / total)
    return (1.0 if t >= total - 1 else _cumulative((t + 1) / total)) - below


def _cumulative(share: float) -> float:
    return 0.5 * (1.0 + math.erf((share - NORMAL_MEAN) / (NORMAL_DEVIATION * math.sqrt(2.0))))


@dataclass(slots=True, order=True)
class _Row:
    """One kept row. Rows are ordered by their random keys; `place` tells two calls' rows with equal keys apart.

    Attributes:
        call: the row alone, as it came at first, and then a copy of it.
    """

    key: float
    place: int
    call: Call = field(compare=False)


@dataclass(slots=True)
class _Stratum:
    """The kept rows of one time and branch, in random order."""

    weight: float
    offset: float
    rows: list[_Row] = field(default_factory=list)

    @property
    def last(self) -> float:
        """Priority of the last row."""
        return (len(self.rows) - 1 + self.offset) / self.weight if self.rows else -math.inf


class Reservoir:
    """Takes calls as they come and keeps what `wish` asks for; deterministic by seed.

    Raises:
        ValueError: fewer than one row is wished for.
    """

    def __init__(self, wish: SampleWish, seed: int) -> None:
        if wish.count < 1:
            raise ValueError(f"a reservoir keeps at least one row, not {wish.count}")
        self._wish = wish
        self._generator = torch.Generator().manual_seed(seed)
        self._strata: dict[tuple[int, int], _Stratum] = {}
        self._held = self._seen = 0
        self._most = wish.count

    def add(self, call: Call, slots: Tensor) -> None:
        """Offers the rows of a call; `slots` [B] int64 says where in the schedule each stands."""
        size = sum(tensor[:1].nbytes for tensor in call.rows.values())
        self._most = max(1, min(self._most, self._wish.bytes // max(1, size)))
        fresh = [self._insert(call, row, slot) for row, slot in enumerate(slots.tolist())]
        dropped = {id(self._drop_worst()) for _ in range(self._held - self._most)}
        for row in fresh:
            if id(row) not in dropped:
                row.call = own_copy(row.call)

    def _insert(self, call: Call, index: int, slot: int) -> _Row:
        key = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        row = _Row(key, self._seen, call.take(torch.tensor([index])))
        bisect.insort(self._stratum(row.call.clock, slot).rows, row)
        self._held, self._seen = self._held + 1, self._seen + 1
        return row

    def _stratum(self, clock: StepClock, slot: int) -> _Stratum:
        name = (slot, int(clock.branch))
        if name not in self._strata:
            normal = self._wish.timesteps == "normal"
            weight = normal_share(int(clock.step), int(clock.total)) if normal else 1.0
            offset = float(torch.rand((), generator=self._generator, dtype=torch.float64))
            self._strata[name] = _Stratum(max(weight, 1e-9), offset)
        return self._strata[name]

    def _drop_worst(self) -> _Row:
        self._held -= 1
        return max(self._strata.values(), key=lambda stratum: stratum.last).rows.pop()

    def samples(self) -> Samples:
        """What is kept now."""
        rows = sorted((row for stratum in self._strata.values() for row in stratum.rows), key=lambda row: row.place)
        alike: dict[str, list[Call]] = {}
        for row in rows:
            alike.setdefault(row.call.signature(), []).append(row.call)
        with torch.inference_mode(False):
            missed = min(self._wish.count, self._seen) - len(rows)
            return Samples(tuple(joined(calls) for calls in alike.values()), missed)


def joined(calls: Sequence[Call]) -> Call:
    """Calls of one signature as one call of all their rows."""
    clocks = [call.clock for call in calls]
    clock = StepClock(*(torch.cat([getattr(one, part) for one in clocks]) for part in ("step", "total", "branch")))
    rows = {name: torch.cat([call.rows[name] for call in calls]) for name in calls[0].rows}
    return replace(calls[0], rows=rows, clock=clock)


def own_copy(call: Call) -> Call:
    """The call with tensors of its own that autograd may use, wherever they were made."""
    with torch.inference_mode(False), torch.no_grad():
        rows = {name: tensor.clone() for name, tensor in call.rows.items()}
        return replace(call, rows=rows, shared={name: tensor.clone() for name, tensor in call.shared.items()})
