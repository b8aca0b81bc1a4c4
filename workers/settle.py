"""How a run ends: its result, failure or return goes to the queue under the owner token, and its files stay or go.

Tries until the queue has answered: a finished result is never lost because Redis was away. Knows no child.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from jobs.errors import Unavailable
from jobs.files import ResultStore
from jobs.job import Failure, JobResult
from jobs.queue import JobQueue
from jobs.settings import Settings
from workers.child import Cause, Death
from workers.metrics import Metrics
from workers.running import Running
from workers.sweep import Sweeper

REASONS = {
    Cause.CRASH: "worker_crashed",
    Cause.OUT_OF_MEMORY: "out_of_memory",
    Cause.HANG: "timeout",
    Cause.OUTSIDE: "worker_killed",
    Cause.STOPPED: "drain",
    Cause.START: "worker_killed",
}
"""Why a job goes back to the queue, by why its child is gone."""

log = logging.getLogger(__name__)


class Settler:
    """Ends runs. Every method returns once the queue has taken, or refused, the end."""

    def __init__(
        self, queue: JobQueue, files: ResultStore, sweeper: Sweeper, metrics: Metrics, settings: Settings
    ) -> None:
        self._queue = queue
        self._files = files
        self._sweeper = sweeper
        self._metrics = metrics
        self._settings = settings

    async def finished(self, run: Running, result: JobResult) -> None:
        """The files are stored: publish them, or delete them when the job is not ours any more."""
        if await self._told(run, lambda: self._queue.succeed(run.claim, result)):
            self._sweeper.settled(run.key)
            self._metrics.succeeded(result)
            return
        log.warning("job %s: somebody else owns it by now; this result is thrown away", run.job_id)
        self._metrics.fenced.inc()
        await self._discard(run)

    async def failed(self, run: Running, failure: Failure) -> None:
        """The job failed and the child lives."""
        log.info("job %s failed: %s: %s", run.job_id, failure.code, failure.message)
        if await self._told(run, lambda: self._queue.fail(run.claim, failure)):
            self._completed(run, "failed")
        await self._discard(run)

    async def canceled(self, run: Running) -> None:
        """The job stopped because its user wanted so."""
        if await self._told(run, lambda: self._queue.confirm_cancel(run.claim)):
            self._completed(run, "canceled")
        await self._discard(run)

    async def lost(self, run: Running) -> None:
        """The job is somebody else's: nothing to tell, only files to delete."""
        await self._discard(run)

    async def bereaved(self, run: Running, death: Death, *, guilty: bool) -> None:
        """The run's child is gone: cancel it if that was wanted, else give it back."""
        if run.lost:
            await self.lost(run)
        elif run.cancel_at is not None:
            await self.canceled(run)
        else:
            await self.give_back(run, REASONS[death.cause] if guilty else _innocent(death), suspect=guilty)

    async def give_back(self, run: Running, reason: str, *, suspect: bool = False) -> None:
        """Return the job to the queue; `suspect` counts against it."""
        await self._discard(run)
        if await self._told(run, lambda: self._queue.give_back(run.claim, suspect=suspect, reason=reason)):
            job, bounds = run.claim.job, self._settings
            dead = job.deliveries >= bounds.max_deliveries or (
                suspect and job.suspect_attempts + 1 >= bounds.max_suspect_attempts
            )
            (self._metrics.dead_lettered if dead else self._metrics.retried).labels(reason).inc()

    def _completed(self, run: Running, status: str) -> None:
        request = run.claim.job.request
        self._metrics.completed.labels(request.model, request.profile, status).inc()

    async def _discard(self, run: Running) -> None:
        await asyncio.to_thread(self._files.discard, *run.key)

    async def _told(self, run: Running, call: Callable[[], Awaitable[bool]]) -> bool:
        """Call until Redis answers; False when the job is not ours any more."""
        await run.reports.flush()
        pause = 0.05
        while True:
            try:
                return await call()
            except Unavailable as error:
                log.warning("job %s: cannot be settled now, trying again in %g s: %s", run.job_id, pause, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)


def _innocent(death: Death) -> str:
    """The reason for a job that was only near: its child was killed for another's sake, or from outside."""
    return REASONS[Cause.OUTSIDE if death.cause is Cause.HANG else death.cause]
