"""Deletes result files that are over, and files of attempts that never became a job's result.

An attempt that was killed between writing and settling leaves such files, and so may one that was frozen meanwhile.
Knows files and job records; never deletes what a record names, nor anything of a job that still runs.
"""

from __future__ import annotations

import asyncio
import logging
import time

from jobs.errors import NotFound
from jobs.files import ResultStore, token_of
from jobs.queue import JobQueue

Attempt = tuple[str, str]

log = logging.getLogger(__name__)


class Sweeper:
    """Call `sweep` every minute or so. `grace` is the age in seconds from which an attempt's files are looked at."""

    def __init__(self, queue: JobQueue, files: ResultStore, grace: float) -> None:
        self._queue = queue
        self._files = files
        self._grace = grace
        self._good: dict[Attempt, float] = {}  # attempts known to be results, so that each is looked up once at most

    def settled(self, attempt: Attempt) -> None:
        """Note that an attempt's files are its job's result."""
        self._good[attempt] = time.time()

    async def sweep(self) -> None:
        """Look at all files once."""
        now = time.time()
        await asyncio.to_thread(self._files.sweep, now)
        existing = set(await asyncio.to_thread(lambda: list(self._files.attempts(now - self._grace))))
        for attempt in existing - self._good.keys():
            await self._look_at(attempt)
        self._good = {key: at for key, at in self._good.items() if at > now - self._grace or key in existing}

    async def _look_at(self, attempt: Attempt) -> None:
        job_id, token = attempt
        try:
            job = await self._queue.get(job_id)
        except NotFound:
            kept, over = False, True
        else:
            kept = job.result is not None and any(token_of(file.id) == token for file in job.result.files)
            over = job.state.final
        if kept:
            self.settled(attempt)
        elif over:
            count = await asyncio.to_thread(self._files.discard, job_id, token)
            log.info("job %s: deleted %d files of an attempt that is not its result", job_id, count)
