"""The event log: reading from a point, following live, resuming, ending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from jobs.errors import InvalidRequest, NotFound
from jobs.events import Event, EventLog, parse_event_id
from jobs.job import Failure, new_job_id
from jobs.queue import JobQueue
from jobs.request import ImageRequest
from jobs.settings import Settings

pytestmark = pytest.mark.anyio
Ask = Callable[..., ImageRequest]


@pytest.fixture
async def log(redis: Redis, settings: Settings) -> AsyncIterator[EventLog]:
    async with EventLog(redis, settings) as events:
        yield events


async def collect(log: EventLog, job_id: str, after: str = "0") -> list[Event]:
    return [event async for event in log.follow(job_id, after)]


async def test_followers_see_everything_as_it_happens(log: EventLog, queue: JobQueue, image_request: Ask) -> None:
    job_id = (await queue.submit(image_request())).job.id
    followers = [asyncio.create_task(collect(log, job_id)) for _ in range(50)]
    [claim] = await queue.take("w", 1)
    for step in range(1, 4):
        await asyncio.sleep(0.02)
        await queue.progress(claim, step, 3)
    await queue.fail(claim, Failure(code="broken", message="why"))
    async with asyncio.timeout(2):
        logs = await asyncio.gather(*followers)
    assert [event.type for event in logs[0]] == ["queued", "started", *["progress"] * 3, "failed"]
    assert logs[0][-1].data == {"code": "broken", "message": "why"}
    assert logs[0][-1].final
    assert all(one == logs[0] for one in logs)


async def test_resuming_gives_what_is_missing(log: EventLog, queue: JobQueue, image_request: Ask) -> None:
    job_id = (await queue.submit(image_request())).job.id
    await queue.cancel(job_id)
    first, last = await log.read(job_id)
    assert await log.read(job_id, after=first.id) == [last]
    assert await collect(log, job_id, after=first.id) == [last]
    async with asyncio.timeout(1):
        assert await collect(log, job_id, after=last.id) == [], "nothing can follow the end"


async def test_reading_waits_for_the_next(log: EventLog, queue: JobQueue, image_request: Ask) -> None:
    job_id = (await queue.submit(image_request())).job.id
    [queued] = await log.read(job_id, block_ms=1000)
    assert await log.read(job_id, after=queued.id, block_ms=50) == []
    waiting = asyncio.create_task(log.read(job_id, after=queued.id, block_ms=2000))
    await asyncio.sleep(0.1)
    await queue.take("w", 1)
    async with asyncio.timeout(1):
        assert [event.type for event in await waiting] == ["started"]


async def test_followers_that_leave_are_forgotten(log: EventLog, queue: JobQueue, image_request: Ask) -> None:
    job_id = (await queue.submit(image_request())).job.id
    follower = asyncio.create_task(collect(log, job_id))
    await asyncio.sleep(0.05)
    assert log._followers
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    assert not log._followers


async def test_no_log_no_following(log: EventLog) -> None:
    assert await log.read(new_job_id()) == []
    with pytest.raises(NotFound):
        await collect(log, new_job_id())


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1-2-3", "1-", "$", "+", "٣", "1\n", str(2**63), f"1-{2**63}", "9" * 30]
)
def test_ids_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_event_id(text)


@pytest.mark.parametrize("text", ["0", "5", "1763690000000-0", f"{2**63 - 1}-{2**63 - 1}"])
async def test_any_id_can_be_read_after(log: EventLog, text: str) -> None:
    assert await log.read(new_job_id(), after=text) == []


async def test_a_log_with_previews_ends_sooner(
    log: EventLog, queue: JobQueue, redis: Redis, settings: Settings, image_request: Ask
) -> None:
    job_id = (await queue.submit(image_request())).job.id
    [claim] = await queue.take("w", 1)
    await queue.preview(claim, 0, "image/png", "aGk=")
    await queue.confirm_cancel(claim)
    assert 3500 < await redis.ttl(f"{settings.namespace}:ev:{job_id}") <= 3600
