"""Deletes result files that no job points to: left by a worker that lost the right to settle. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time

from jobs.errors import NotFound
from jobs.files import ResultStore, token_of
from jobs.queue import JobQueue


async def collect_orphans(store: ResultStore, queue: JobQueue, *, min_age: float = 3600) -> int:
    """Delete the files of attempts, older than `min_age` seconds, that are not their job's result; how many.

    A worker that hears that its claim is lost deletes its own files; this is for one that died before it heard. Files
    of jobs that are not final yet stay: their attempt may still be settled.
    """
    count = 0
    for job_id, token in await asyncio.to_thread(lambda: list(store.attempts(time.time() - min_age))):
        if await _is_orphan(queue, job_id, token):
            count += await asyncio.to_thread(store.discard, job_id, token)
    return count


async def _is_orphan(queue: JobQueue, job_id: str, token: str) -> bool:
    try:
        job = await queue.get(job_id)
    except NotFound:
        return True
    kept = {token_of(file.id) for file in job.result.files} if job.result else set()
    return job.state.final and token not in kept
