"""How many rows one denoiser call should have: measured, by shape, and remembered. Knows numbers only."""

from __future__ import annotations

import threading
from collections.abc import Hashable

FIRST_ROWS = 2
MAX_ROWS = 16
"""Executables are compiled for batches of up to so many rows; no CPU measured gained from more."""

GAIN = 1.05
"""Twice the rows must bring so many times the rows per second, or latency and memory grow for nothing."""

SAMPLES = 2
"""Timed runs of a size before it is judged, after one that is not counted: it compiles, allocates, fills caches."""


class RowLimit:
    """The limit for one denoiser and shape; doubles from `FIRST_ROWS` for as long as doubling pays."""

    def __init__(self) -> None:
        self.rows = FIRST_ROWS
        self.settled = False
        self.rates: dict[int, float] = {}
        self._runs: dict[int, int] = {}

    def observe(self, rows: int, seconds: float) -> None:
        """Learns from a call of `rows` rows that took `seconds`."""
        bucket = bucket_of(rows)
        self._runs[bucket] = self._runs.get(bucket, 0) + 1
        if self._runs[bucket] > 1:
            self.rates[bucket] = max(self.rates.get(bucket, 0.0), rows / seconds)
        if not self.settled and bucket == self.rows and self._runs[bucket] > SAMPLES:
            self._judge(bucket)

    def _judge(self, bucket: int) -> None:
        smaller = self.rates.get(bucket // 2)
        if smaller is not None and self.rates[bucket] < GAIN * smaller:
            self.rows, self.settled = bucket // 2, True
        elif bucket >= MAX_ROWS:
            self.settled = True
        else:
            self.rows = 2 * bucket


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
