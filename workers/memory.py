"""This process's memory as the operating system counts it, and each job's peak of it. Knows no jobs but by a number."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def rss_bytes() -> int:
    """Resident bytes now."""
    return _field("VmRSS")


def peak_bytes() -> int:
    """Most resident bytes since the start, or since `PeakMeter` last cut."""
    return _field("VmHWM")


def _field(name: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")


@dataclass(eq=False)
class Peak:
    """The peak of one job; final once its `PeakMeter.watch` is left."""

    bytes: int = 0


class PeakMeter:
    """Peaks of jobs that overlap: the kernel's high-water mark is cut wherever a job starts or ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Peak] = set()
        self._can_cut = True
        self.highest = 0

    @contextmanager
    def watch(self) -> Iterator[Peak]:
        """Measures the process's peak for as long as the block runs."""
        peak = Peak()
        with self._lock:
            self._cut()
            self._running.add(peak)
        try:
            yield peak
        finally:
            with self._lock:
                self._cut()
                self._running.remove(peak)

    def read(self, peak: Peak) -> int:
        """The peak of a job that still runs."""
        with self._lock:
            self._cut()
            return peak.bytes

    def _cut(self) -> None:
        now = peak_bytes()
        self.highest = max(self.highest, now)
        for peak in self._running:
            peak.bytes = max(peak.bytes, now)
        if not self._can_cut:
            return
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="utf-8")
        except OSError as error:
            self._can_cut = False
            log.warning("peaks of memory are since the process's start, not the job's: %s", error)
