"""Submitting, looking and canceling on a real server: what a gateway may rely on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest
from redis.asyncio import Redis

from jobs.errors import IdempotencyConflict, InvalidRequest, JobFinished, NotFound, QueueFull
from jobs.job import Failure, Job, JobState, new_job_id
from jobs.queue import JobQueue
from jobs.request import ImageRequest, Priority, VideoRequest
from jobs.settings import Settings

pytestmark = pytest.mark.anyio
Ask = Callable[..., ImageRequest]


async def test_a_submitted_job_is_there_as_it_was_asked_for(queue: JobQueue, image_request: Ask) -> None:
    request = image_request(prompt="ein größerer Kreis 🟠", priority="high")
    submission = await queue.submit(request, owner="alice")
    assert submission.created
    job = await queue.get(submission.job.id, owner="alice")
    assert job == submission.job
    assert (job.request, job.state, job.owner) == (request, JobState.QUEUED, "alice")
    with pytest.raises(NotFound):
        await queue.get(job.id, owner="bob")
    for unknown in (new_job_id(), "", "../etc", job.id.upper(), job.id + "\n"):
        with pytest.raises(NotFound):
            await queue.get(unknown)


async def test_the_same_id_or_key_gets_the_first_job(queue: JobQueue, image_request: Ask) -> None:
    job_id = new_job_id()
    first = await queue.submit(image_request(), job_id=job_id)
    again = await queue.submit(image_request(), job_id=job_id)
    assert (first.created, again.created, again.job) == (True, False, first.job)
    with pytest.raises(IdempotencyConflict, match="job id"):
        await queue.submit(image_request(seed=2), job_id=job_id)
    with pytest.raises(IdempotencyConflict):
        await queue.submit(image_request(), job_id=job_id, owner="other")

    keyed = await queue.submit(image_request(), owner="a", idempotency_key="k")
    assert (await queue.submit(image_request(), owner="a", idempotency_key="k")).job == keyed.job
    assert (await queue.submit(image_request(), owner="b", idempotency_key="k")).created, "keys belong to their owner"
    with pytest.raises(IdempotencyConflict, match="idempotency key"):
        await queue.submit(image_request(seed=2), owner="a", idempotency_key="k")
    with pytest.raises(InvalidRequest):
        await queue.submit(image_request(), job_id="XYZ")


async def test_what_the_user_sent_decides_not_the_seed_we_drew(queue: JobQueue, image_request: Ask) -> None:
    body = {"prompt": "a red circle"}
    first = await queue.submit(image_request(seed=1), idempotency_key="k", body=body)
    again = await queue.submit(image_request(seed=2), idempotency_key="k", body=dict(body))
    assert again.job == first.job
    with pytest.raises(IdempotencyConflict):
        await queue.submit(image_request(seed=1), idempotency_key="k", body={"prompt": "a blue circle"})


async def test_concurrent_submits_with_one_key_make_one_job(queue: JobQueue, image_request: Ask) -> None:
    keys = [f"key-{i}" for i in range(40) for _ in range(5)]
    random.Random(7).shuffle(keys)
    answers = await asyncio.gather(*(queue.submit(image_request(), idempotency_key=key) for key in keys))
    assert sum(answer.created for answer in answers) == 40
    assert len({answer.job.id for answer in answers}) == 40
    assert (await queue.stats()).depth[Priority.NORMAL] == 40


async def test_a_full_queue_refuses_and_says_when_to_come_back(
    redis: Redis, settings: Settings, image_request: Ask
) -> None:
    queue = JobQueue(redis, settings.model_copy(update={"max_queue": 5, "max_queued_per_key": 2}))
    kept = [await queue.submit(image_request(), owner="alice", idempotency_key=f"{i}") for i in range(2)]
    with pytest.raises(QueueFull, match="2 jobs of this key") as full:
        await queue.submit(image_request(), owner="alice")
    assert full.value.retry_after is not None
    assert 1 <= full.value.retry_after <= 60
    for _ in range(3):
        await queue.submit(image_request())
    with pytest.raises(QueueFull, match="5 jobs wait"):
        await queue.submit(image_request(), owner="bob")
    assert not (await queue.submit(image_request(), owner="alice", idempotency_key="1")).created, "not a new job"
    await queue.cancel(kept[0].job.id)
    assert (await queue.submit(image_request(), owner="alice")).created


async def test_priorities_and_ageing(redis: Redis, settings: Settings, image_request: Ask) -> None:
    queue = JobQueue(redis, settings.model_copy(update={"ageing_seconds": 0.4}))
    old = await queue.submit(image_request(priority="low"))
    await asyncio.sleep(0.9)
    fresh = {
        p: (await queue.submit(image_request(priority=p))).job for p in (Priority.LOW, Priority.NORMAL, Priority.HIGH)
    }
    taken = [claim.job.id for claim in await queue.take("w", 10)]
    assert taken == [old.job.id, fresh[Priority.HIGH].id, fresh[Priority.NORMAL].id, fresh[Priority.LOW].id]


async def test_position_tells_the_order_of_taking(redis: Redis, settings: Settings, image_request: Ask) -> None:
    queue = JobQueue(redis, settings.model_copy(update={"ageing_seconds": 0.01}))
    order = random.Random(3)
    jobs = [(await queue.submit(image_request(priority=order.choice(list(Priority))))).job for _ in range(60)]
    said = {job.id: await queue.position(job) for job in jobs}
    taken = [claim.job.id for _ in jobs for claim in await queue.take("w", 1)]
    assert [said[job_id] for job_id in taken] == list(range(60))
    assert await queue.position(jobs[0]) == 0


async def test_listing_pages_through_own_jobs_newest_first(queue: JobQueue, image_request: Ask) -> None:
    mine = [(await queue.submit(image_request(seed=i), owner="alice")).job.id for i in range(7)]
    await queue.submit(image_request(), owner="bob")
    await queue.cancel(mine[3])
    seen, after, pages = [], None, 0
    while True:
        page = await queue.list("alice", limit=3, after=after)
        seen += [job.id for job in page.jobs]
        pages += 1
        if not page.has_more:
            break
        after = page.jobs[-1].id
    assert (seen, pages) == (mine[::-1], 3)
    canceled = await queue.list("alice", limit=3, state=JobState.CANCELED)
    assert [job.id for job in canceled.jobs] == [mine[3]]
    assert not canceled.has_more
    with pytest.raises(NotFound):
        await queue.list("bob", limit=3, after=mine[0])
    with pytest.raises(InvalidRequest):
        await queue.list("alice", limit=0)


async def test_listing_one_kind_reads_no_other(
    queue: JobQueue, image_request: Ask, video_request: Callable[..., VideoRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    films = [(await queue.submit(video_request(seed=i), owner="alice")).job.id for i in range(3)]
    pictures = [(await queue.submit(image_request(seed=i), owner="alice")).job.id for i in range(9)]
    read: list[str] = []

    async def reading(self: JobQueue, ids: Sequence[str]) -> list[Job]:
        read.extend(ids)
        return await records(self, ids)

    records = JobQueue.records
    monkeypatch.setattr(JobQueue, "records", reading)
    page = await queue.list("alice", limit=2, kind="video")
    assert ([job.id for job in page.jobs], page.has_more) == (films[:0:-1], True)
    rest = await queue.list("alice", limit=2, kind="video", after=films[1])
    assert ([job.id for job in rest.jobs], rest.has_more) == (films[:1], False)
    assert set(read) == set(films)
    with pytest.raises(NotFound):
        await queue.list("alice", kind="video", after=pictures[0])
    await queue.delete(films[2])
    assert [job.id for job in (await queue.list("alice", kind="video")).jobs] == films[1::-1]
    assert len((await queue.list("alice")).jobs) == 11


async def test_cancel(queue: JobQueue, image_request: Ask) -> None:
    waiting = (await queue.submit(image_request(), owner="alice")).job
    with pytest.raises(NotFound):
        await queue.cancel(waiting.id, owner="bob")
    gone = await queue.cancel(waiting.id, owner="alice")
    assert gone.state is JobState.CANCELED
    assert await queue.cancel(waiting.id) == gone, "once more is no error"
    assert await queue.take("w", 5) == []
    assert (await queue.stats()).pending == 0

    running = (await queue.submit(image_request())).job
    [claim] = await queue.take("w", 1)
    await queue.wait(0.1)
    asked = await queue.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert running.id in await queue.wait(1)
    assert (await queue.renew([claim])).canceled == {running.id}
    assert await queue.confirm_cancel(claim)
    assert (await queue.get(running.id)).state is JobState.CANCELED

    await queue.submit(image_request())
    [claim] = await queue.take("w", 1)
    await queue.fail(claim, Failure(code="x", message="y"))
    with pytest.raises(JobFinished, match="failed already"):
        await queue.cancel(claim.job.id)


async def test_stats_count_what_waits_and_runs(queue: JobQueue, image_request: Ask) -> None:
    assert sum((await queue.stats()).depth.values()) == 0
    for priority in ("high", "low", "low"):
        await queue.submit(image_request(priority=priority))
    await asyncio.sleep(0.05)
    await queue.take("w", 1)
    stats = await queue.stats()
    assert stats.depth == {Priority.HIGH: 0, Priority.NORMAL: 0, Priority.LOW: 2}
    assert (stats.pending, stats.dead) == (1, 0)
    assert 0.05 <= stats.oldest_age[Priority.LOW] < 5
    assert stats.oldest_age[Priority.HIGH] == 0
    await queue.probe()


async def test_no_key_outlives_a_job_but_its_record(
    queue: JobQueue, redis: Redis, settings: Settings, image_request: Ask
) -> None:
    job = (await queue.submit(image_request())).job
    [claim] = await queue.take("w", 1)
    await queue.confirm_cancel(claim)
    space = settings.namespace
    for key in (f"{space}:job:{job.id}", f"{space}:ev:{job.id}"):
        assert settings.record_ttl_seconds - 60 < await redis.ttl(key) <= settings.record_ttl_seconds
    assert await redis.xlen(f"{space}:q:image:normal") == 0
    assert await redis.hlen(f"{space}:queued") == 0
    assert await redis.zcard(f"{space}:waiting:image:normal") == 0
