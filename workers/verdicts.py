"""Comparisons on their way from the device child to Redis, one by one, kept while Redis is away. Knows no jobs."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from jobs.errors import Unavailable
from jobs.guard import GuardLog
from jobs.guard_record import Comparison
from workers.metrics import Metrics

log = logging.getLogger(__name__)

KEPT = 256
"""Comparisons that wait for Redis at most; the oldest goes, and is counted."""

LONGEST_PAUSE = 5.0


class Verdicts:
    """Records comparisons."""

    def __init__(self, guard: GuardLog, metrics: Metrics) -> None:
        self._guard = guard
        self._metrics = metrics
        self._waiting: deque[Comparison] = deque()
        self._came = asyncio.Event()

    def heard(self, one: Comparison) -> None:
        """Take a comparison; it is recorded by `run`."""
        if len(self._waiting) >= KEPT:
            old = self._waiting.popleft()
            self._metrics.skipped.labels(old.model, old.profile, "unrecorded").inc()
            log.warning("guard: a comparison of %s/%s is dropped: Redis is away", old.model, old.profile)
        self._waiting.append(one)
        self._came.set()

    async def run(self) -> None:
        """Record what comes, for ever."""
        pause = 0.1
        while True:
            await self._came.wait()
            while self._waiting:
                one = self._waiting[0]
                try:
                    self._metrics.compared(await self._guard.record(one))
                except Unavailable as error:
                    log.warning("guard: a comparison cannot be recorded now: %s", error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                except Exception:  # a record that cannot be read must not end the worker
                    self._metrics.skipped.labels(one.model, one.profile, "unrecorded").inc()
                    log.exception("guard: a comparison of %s/%s cannot be recorded", one.model, one.profile)
                pause = 0.1
                if self._waiting and self._waiting[0] is one:
                    self._waiting.popleft()
            self._came.clear()
