"""What work costs here, learned from finished jobs: device seconds by model, profile, kind and size. Knows no queue.

A job's denoiser time is its number of calls (steps times branches) times what one call takes, and a call grows with its
size (pixels of all pictures or frames of the job) in no simple way: what every call costs weighs on small ones, and
attention grows faster than its input. So nothing is assumed about the whole: the least time seen at each size is a
point, between two points lies a power law, and beyond the last ones a bounded one. The least, because a first call of a
shape compiles and a job in company waits. What comes before and after the calls (text, decoding, encoding) is fitted in
the same way.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.job import Costs
from jobs.request import JobRequest

MOST_BEYOND = 8.0
"""A job larger than any that was seen by more than this factor has no estimate, and is not refused by it."""

_RECENT = 8
_SIZES = 32
_LEAST = 1e-9
_DOWNWARD = (0.0, 1.0)
_UPWARD = (1.0, 2.0)
"""Bounds of the exponents below the smallest size and above the largest: from a fixed cost to attention's square."""


class Seen(NamedTuple):
    """Seconds of one job: of one of its calls, and of all that is no call."""

    call: float
    rest: float


@dataclass
class _Sizes:
    """The last jobs at each size of one model, profile and kind; sizes that were not seen for long are forgotten."""

    seen: OrderedDict[float, deque[Seen]] = field(default_factory=OrderedDict)

    def add(self, size: float, seen: Seen) -> None:
        self.seen.setdefault(size, deque(maxlen=_RECENT)).append(seen)
        self.seen.move_to_end(size)
        if len(self.seen) > _SIZES:
            self.seen.popitem(last=False)

    def least(self, part: int) -> list[tuple[float, float]]:
        """(size, least seconds of that part) by size."""
        return [(size, min(jobs[part] for jobs in self.seen[size])) for size in sorted(self.seen)]


class CostBook:
    """Learns from finished jobs and tells what others will take."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], _Sizes] = {}

    def observe(self, request: JobRequest, costs: Costs) -> None:
        """Learn from one finished job."""
        if costs.denoise_seconds > 0:
            rest = costs.text_encode_seconds + costs.decode_seconds + costs.encode_seconds
            seen = Seen(costs.denoise_seconds / request.calls, rest)
            self._kinds.setdefault(_key(request), _Sizes()).add(_size(request), seen)

    def estimate(self, request: JobRequest, left: float = 1.0) -> float | None:
        """Expected device seconds of a request, alone; None when nothing like it has run yet.

        `left` is the share of its calls that are still to do; what comes before and after them counts in full.
        """
        sizes, size = self._kinds.get(_key(request)), _size(request)
        if sizes is None or size > MOST_BEYOND * max(sizes.seen):
            return None
        call, rest = (power_law(sizes.least(part), size) for part in range(2))
        return call * request.calls * left + rest


def _key(request: JobRequest) -> tuple[str, str, str]:
    return request.kind, request.model, request.profile


def _size(request: JobRequest) -> float:
    """Pixels of one call."""
    return request.work / request.calls


def power_law(points: Sequence[tuple[float, float]], size: float) -> float:
    """Seconds at a size, from (size, seconds) in the order of sizes, at least one.

    Through all points, which are first made not to fall: a larger size that took less speaks for the smaller ones too.
    """
    logs = [(math.log(at), math.log(max(seconds, _LEAST))) for at, seconds in _rising(points)]
    where = math.log(size)
    if len(logs) == 1:
        return math.exp(logs[0][1] + where - logs[0][0])
    right = next((i for i, (at, _) in enumerate(logs) if at >= where), len(logs) - 1)
    (x0, y0), (x1, y1) = logs[max(0, right - 1)], logs[max(1, right)]
    slope = (y1 - y0) / (x1 - x0)
    if where < logs[0][0]:
        return math.exp(y0 + _within(slope, _DOWNWARD) * (where - x0))
    if where > logs[-1][0]:
        return math.exp(y1 + _within(slope, _UPWARD) * (where - x1))
    return math.exp(y0 + slope * (where - x0))


def _rising(points: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    least, rising = math.inf, []
    for size, seconds in reversed(points):
        least = min(least, seconds)
        rising.append((size, least))
    return reversed(rising)


def _within(slope: float, bounds: tuple[float, float]) -> float:
    return min(max(slope, bounds[0]), bounds[1])
