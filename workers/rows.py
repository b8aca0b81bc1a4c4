"""How many rows one denoiser call should have: measured, by shape, and remembered. Knows numbers only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

FIRST_ROWS = 2
MAX_ROWS = 16
"""Executables are compiled for batches of up to so many rows."""

GAIN = 1.05
"""Twice the rows must bring so many times the rows per second, or latency and memory grow for nothing."""

SAMPLES = 3
"""Timed runs of a size before it is judged, after one that is not counted: it compiles, allocates, fills caches."""

DOUBTS = 3
"""More runs that a size gets before it is judged not to pay: a busy machine makes single runs look slow, never fast."""

RETRY_CALLS = 500
"""Calls after which a size that did not pay among jobs' own calls is tried again: the machine may have been busy."""


@dataclass
class Search:
    """Finds the limit by running sizes in pairs, one right after the other, so that a busy machine slows both.

    Attributes:
        seconds_of: runs a call of so many rows and gives its seconds.
        rows: the largest size known to pay.
        complete: whether that is final; otherwise time was up.
        rates: rows per second at their best, by rows a call.
    """

    seconds_of: Callable[[int], float]
    rows: int = FIRST_ROWS
    complete: bool = False
    rates: dict[int, float] = field(default_factory=dict)

    def run(self, budget: float) -> None:
        """Searches for at most `budget` seconds and one comparison."""
        end = time.monotonic() + budget
        while self.rows < MAX_ROWS and time.monotonic() < end:
            self.seconds_of(2 * self.rows)
            if not self._doubling_pays():
                self.complete = True
                return
            self.rows *= 2
        self.complete = self.rows >= MAX_ROWS

    def _doubling_pays(self) -> bool:
        rates = {self.rows: 0.0, 2 * self.rows: 0.0}
        for run in range(SAMPLES + DOUBTS):
            for size in rates:
                rates[size] = max(rates[size], size / self.seconds_of(size))
            self.rates.update(rates)
            if run + 1 >= SAMPLES and rates[2 * self.rows] >= GAIN * rates[self.rows]:
                return True
        return False


class RowLimit:
    """The limit for one denoiser and shape: set by a search, or learned from the jobs' own calls."""

    def __init__(self) -> None:
        self.rows = FIRST_ROWS
        self.settled = False
        self.seconds: float | None = None
        """What the last call took, of however many rows."""
        self._rates: dict[int, float] = {}
        self._runs = 0  # of the size on trial, which is `rows`; negative while it rests

    def settle(self, search: Search) -> None:
        """Takes over what a search found."""
        self.rows, self.settled = search.rows, search.complete
        self._rates = dict(search.rates)

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from a job's call; of other sizes than the one on trial, nothing."""
        if self.settled or bucket_of(rows) != self.rows:
            return
        self._runs += 1
        if self._runs > 1:
            self._rates[self.rows] = max(self._rates.get(self.rows, 0.0), rows / seconds)
        if self._runs > SAMPLES:
            self._judge()

    def _judge(self) -> None:
        smaller = self._rates.get(self.rows // 2)
        if smaller is None or self._rates[self.rows] >= GAIN * smaller:
            self.settled = self.rows >= MAX_ROWS
            self.rows, self._runs = min(2 * self.rows, MAX_ROWS), 0
        elif self._runs > SAMPLES + DOUBTS:
            self._rates.clear()
            self.rows, self._runs = self.rows // 2, -RETRY_CALLS


class RowLimits:
    """All limits of a process, by denoiser and shape."""

    def __init__(self) -> None:
        self._limits: dict[Hashable, RowLimit] = {}
        self._lock = threading.Lock()

    def of(self, key: Hashable) -> RowLimit:
        """The limit for a key, new at its first call."""
        with self._lock:
            return self._limits.setdefault(key, RowLimit())


def bucket_of(rows: int) -> int:
    """The smallest power of two that holds so many rows."""
    return 1 << (rows - 1).bit_length()
