"""How many rows one denoiser call should have: measured, by shape, and remembered. Knows numbers only."""

from __future__ import annotations

import threading
from collections.abc import Hashable

FIRST_ROWS = 2
MAX_ROWS = 16
"""Executables are compiled for batches of up to so many rows; no CPU measured gained from more."""

GAIN = 1.05
"""Twice the rows must bring so many times the rows per second, or latency and memory grow for nothing."""

SAMPLES = 3
"""Timed runs of a size before it is judged, after one that is not counted: it compiles, allocates, fills caches."""

DOUBTS = 3
"""More runs that a size gets before it is judged not to pay: a busy machine makes single runs look slow, never fast."""


class RowLimit:
    """The limit for one denoiser and shape; doubles from `FIRST_ROWS` for as long as doubling pays.

    Attributes:
        rows: the limit as known so far.
        settled: whether it is final.
        rates: rows per second at their best, by number of rows (a power of two) a call.
    """

    def __init__(self) -> None:
        self.rows = FIRST_ROWS
        self.settled = False
        self.rates: dict[int, float] = {}
        self._runs = 0  # of the size that is on trial: `rows`

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from a call of `rows` rows that took `seconds`; of other sizes than the one on trial, nothing."""
        if self.settled or bucket_of(rows) != self.rows:
            return
        self._runs += 1
        if self._runs > 1:
            self.rates[self.rows] = max(self.rates.get(self.rows, 0.0), rows / seconds)
        if self._runs > SAMPLES:
            self._judge()

    def _judge(self) -> None:
        smaller = self.rates.get(self.rows // 2)
        pays = smaller is None or self.rates[self.rows] >= GAIN * smaller
        if pays and self.rows < MAX_ROWS:
            self.rows, self._runs = 2 * self.rows, 0
        elif pays:
            self.settled = True
        elif self._runs > SAMPLES + DOUBTS:
            self.rows, self.settled = self.rows // 2, True


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
