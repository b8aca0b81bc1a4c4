"""A job in the supervisor's hands: its lease, where it is, when it last moved, and what is told about it on the way.

Knows the queue's claims and its progress calls; decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from jobs.errors import Unavailable
from jobs.queue import JobQueue
from jobs.records import Claim

REPORT_SECONDS = 0.25
"""Shortest time between two progress events of a job; the last step is always told."""

log = logging.getLogger(__name__)


class Phase(Enum):
    """Where a job is."""

    WAITING = auto()  # for the child to be ready, or to be empty
    IN_CHILD = auto()
    SETTLING = auto()


@dataclass(eq=False, slots=True)
class Running:
    """One leased run of a job. Times are of the monotonic clock."""

    claim: Claim
    reports: Reports
    moved_at: float = field(default_factory=time.monotonic)  # the last sign of progress
    sent_at: float = field(default_factory=time.monotonic)  # when the child was given it
    phase: Phase = Phase.WAITING
    stepped: bool = False
    cancel_at: float | None = None  # when the child was told to stop it
    lost: bool = False  # the lease is somebody else's

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.claim.job.id

    @property
    def key(self) -> tuple[str, str]:
        """Job id and owner token: names this run among all runs of the job."""
        return self.claim.job.id, self.claim.token

    def moved(self, *, stepped: bool = False) -> None:
        """Note a sign of progress."""
        self.moved_at = time.monotonic()
        self.stepped = self.stepped or stepped


class Reports:
    """Progress and previews of one run on their way to the job's event stream, in order, a few times a second."""

    def __init__(self, queue: JobQueue, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._calls: deque[Callable[[], Awaitable[bool]]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._stepped_at = float("-inf")

    def step(self, step: int, total: int) -> None:
        """Tell of a step, unless one was told a moment ago and more will come."""
        now = time.monotonic()
        if step < total and now - self._stepped_at < REPORT_SECONDS:
            return
        self._stepped_at = now
        self._send(lambda: self._queue.progress(self._claim, step, total))

    def preview(self, index: int, mime: str, b64: str) -> None:
        """Tell of a preview."""
        self._send(lambda: self._queue.preview(self._claim, index, mime, b64))

    async def flush(self) -> None:
        """Wait until all is told; before a job is settled, so that no progress comes after its end."""
        if self._sender is not None:
            await self._sender

    def _send(self, call: Callable[[], Awaitable[bool]]) -> None:
        self._calls.append(call)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while self._calls:
            try:
                # False says that the lease is lost, which the next renewal tells anyway
                await self._calls.popleft()()
            except Unavailable as error:
                log.warning("job %s: a progress report is dropped: %s", self._claim.job.id, error)
