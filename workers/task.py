"""A job as the device child's threads see it: its name, its rank, and whether it is still wanted. Knows no models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from jobs.files import ResultStore
from jobs.request import AnyRequest, ImageRequest, Priority, VideoRequest

Drawn = ImageRequest | VideoRequest
"""Requests for something that one pipeline draws at once."""

RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
BACKGROUND_RANK = 3
"""Below every user's, and no age changes that."""


class JobCanceledSignal(BaseException):
    """Raised on a job's own thread, through the pipeline, to end it. No `except Exception` on the way may stop it."""


class Task:
    """One run of one job on one thread."""

    def __init__(
        self, job_id: str, token: str = "", priority: Priority = Priority.NORMAL, *, background: bool = False
    ) -> None:
        """`background`: no user's work; it makes way for every job, in the device's time and in memory."""
        self.job_id = job_id
        self.token = token
        self.background = background
        self.rank = BACKGROUND_RANK if background else RANK[priority]
        self.denoiser_calls = 0
        self._canceled = threading.Event()
        self._wakers: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def canceled(self) -> bool:
        """Whether nobody wants the job any more."""
        return self._canceled.is_set()

    def cancel(self) -> None:
        """Ends the job at its next check; wakes it where it waits."""
        with self._lock:
            self._canceled.set()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Has `wake` called when the job is canceled; at once when it already is. Replaces the one before."""
        with self._lock:
            if not self._canceled.is_set():
                self._wakers = [wake]
                return
        wake()

    def check(self) -> None:
        """Raises JobCanceledSignal when the job is canceled. Called between all longer pieces of work."""
        if self._canceled.is_set():
            raise JobCanceledSignal(self.job_id)

    def sleep(self, seconds: float) -> None:
        """Sleeps, or raises JobCanceledSignal as soon as the job is canceled."""
        self._canceled.wait(seconds)
        self.check()


@dataclass(frozen=True)
class Assignment:
    """A request, where its files go, and how long it waited before."""

    request: AnyRequest
    store: ResultStore
    queue_seconds: float = 0.0
