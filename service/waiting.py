"""Waiting for a job for an open request: until it is final, the client goes, or patience ends. Knows no format."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from fastapi import Request

from jobs.errors import JobCanceled, JobFailed, JobFinished, NotFound, TimedOut
from jobs.events import Event
from jobs.job import Failure, Job, JobResult, JobState
from service.context import Gateway
from service.errors import ClientGone

log = logging.getLogger("halftone.service")


async def result_of(gateway: Gateway, request: Request, job: Job, *, cancel_when_gone: bool) -> JobResult:
    """What the job made. Woken by its events, never polling.

    Raises JobFailed, JobCanceled, TimedOut (the job goes on) or ClientGone; the last cancels the job if told so.
    """
    if job.state.final:
        return result_or_fault(job.state, job.result, job.failure)
    started = time.perf_counter()
    event = await _final_event(gateway, request, job, cancel_when_gone)
    gateway.metrics.waited.labels(event.type).observe(time.perf_counter() - started)
    return read_final(event)


def read_final(event: Event) -> JobResult:
    """What a terminal event carries; raises JobFailed or JobCanceled when that is no result."""
    result = JobResult.model_validate(event.data) if event.type == "succeeded" else None
    failure = Failure.model_validate(event.data) if event.type == "failed" else None
    return result_or_fault(JobState(event.type), result, failure)


def result_or_fault(state: JobState, result: JobResult | None, failure: Failure | None) -> JobResult:
    """A final job's result; raises JobFailed, with the failure's own code, or JobCanceled."""
    if result is not None:
        return result
    if failure is None:
        raise JobCanceled(f"the job was {state.value}")
    fault = JobFailed(failure.message)
    fault.code = failure.code
    raise fault


async def _final_event(gateway: Gateway, request: Request, job: Job, cancel_when_gone: bool) -> Event:
    settled = asyncio.create_task(_last(gateway, job.id))
    gone = asyncio.create_task(_gone(request))
    ends: set[asyncio.Future[Any]] = {settled, gone, gateway.last_call}
    patience = gateway.settings.sync_wait_seconds
    try:
        await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if settled.done():
            return settled.result()
        if gone.done():
            if cancel_when_gone:
                gateway.errand(abandon(gateway, job.id), f"cancel of job {job.id}")
            raise ClientGone("the client closed the connection")
        why = "the gateway is shutting down" if gateway.last_call.done() else f"not finished within {patience:.0f} s"
        raise TimedOut(f"{why}; the job goes on: ask GET /v1/jobs/{job.id}")
    finally:
        settled.cancel()
        gone.cancel()


def every_event(gateway: Gateway, job_id: str, after: str = "0") -> AsyncGenerator[Event, None]:
    """A job's events as they happen, through the terminal one. Close it when leaving before its end."""
    return cast("AsyncGenerator[Event, None]", gateway.events.follow(job_id, after))


async def _last(gateway: Gateway, job_id: str) -> Event:
    async with aclosing(every_event(gateway, job_id)) as events:
        async for event in events:
            if event.final:
                return event
    raise NotFound(f"job {job_id} has expired")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def abandon(gateway: Gateway, job_id: str) -> None:
    """Cancel a job that nobody waits for any more."""
    try:
        await gateway.queue.cancel(job_id)
    except (JobFinished, NotFound) as fault:
        log.debug("nothing to cancel: %s", fault.message)
