"""Whether any user's job is in the device child: what background work waits for. Knows no jobs, only how many."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Presence:
    """Counts the jobs of users."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._left_at = float("-inf")

    @contextmanager
    def somebody(self) -> Iterator[None]:
        """Held for as long as a user's job is here."""
        with self._changed:
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._left_at = time.monotonic()
                self._changed.notify_all()

    def wait_alone(self, timeout: float, quiet: float = 0.0) -> bool:
        """Waits until nobody has been here for `quiet` seconds; False when that took longer than `timeout`."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                now = time.monotonic()
                rest = self._left_at + quiet - now
                if self._count == 0 and rest <= 0:
                    return True
                if now >= end:
                    return False
                self._changed.wait(min(end - now, rest) if self._count == 0 else end - now)
