"""Taking, keeping and settling on a real server: leases, fencing, poison, dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Costs, Failure, JobResult, JobState, Used
from jobs.keys import RETURNED
from jobs.queue import JobQueue
from jobs.records import Renewal, WorkerInfo
from jobs.request import ImageRequest
from jobs.settings import Settings

pytestmark = pytest.mark.anyio
Ask = Callable[..., ImageRequest]

USED = Used(
    model="null",
    profile="float",
    backend="null",
    seed=1,
    num_inference_steps=4,
    guidance_scale=1.0,
    width=64,
    height=64,
    scheduler="none",
)
RESULT = JobResult(files=(), used=USED, costs=Costs(denoise_seconds=0.5))


@pytest.fixture
def hasty(redis: Redis, settings: Settings) -> JobQueue:
    """A queue whose leases end after 200 ms."""
    return JobQueue(redis, settings.model_copy(update={"lease_seconds": 0.2}))


async def kinds(redis: Redis, settings: Settings, job_id: str) -> list[str]:
    return [event.type for event in await EventLog(redis, settings).read(job_id)]


async def test_a_job_from_taken_to_settled(
    queue: JobQueue, redis: Redis, settings: Settings, image_request: Ask
) -> None:
    job_id = (await queue.submit(image_request())).job.id
    [claim] = await queue.take("w", 4)
    job = claim.job
    assert (job.state, job.worker, job.deliveries) == (JobState.RUNNING, "w", 1)
    assert job.started_at is not None
    assert not claim.suspect
    assert await queue.renew([claim]) == Renewal()
    assert await queue.succeed(claim, RESULT)
    done = await queue.get(job_id)
    assert (done.state, done.result) == (JobState.SUCCEEDED, RESULT)
    assert done.finished_at is not None
    assert done.expires_at == pytest.approx(done.finished_at + settings.result_ttl_seconds, abs=0.01)
    assert await kinds(redis, settings, job_id) == ["queued", "started", "succeeded"]


async def test_settling_twice_is_once_and_the_first_word_counts(queue: JobQueue, image_request: Ask) -> None:
    await queue.submit(image_request())
    [claim] = await queue.take("w", 1)
    assert await queue.succeed(claim, RESULT)
    assert await queue.succeed(claim, RESULT), "the library may send it again"
    assert not await queue.fail(claim, Failure(code="x", message="y"))
    assert not await queue.confirm_cancel(claim)
    assert not await queue.give_back(claim, suspect=True, reason="late")
    assert (await queue.renew([claim])).lost == {claim.job.id}
    assert (await queue.get(claim.job.id)).state is JobState.SUCCEEDED


async def test_many_takers_get_each_job_once(queue: JobQueue, image_request: Ask) -> None:
    ids = {(await queue.submit(image_request(seed=i))).job.id for i in range(150)}
    taken: list[str] = []

    async def work(name: str) -> None:
        while claims := await queue.take(name, 3):
            taken.extend(claim.job.id for claim in claims)

    await asyncio.gather(*(work(f"w{i}") for i in range(8)))
    assert len(taken) == 150
    assert set(taken) == ids
    assert await queue.take("w", 0) == []
    with pytest.raises(ValueError, match="named"):
        await queue.take(RETURNED, 1)


async def test_who_lost_the_lease_cannot_settle(hasty: JobQueue, image_request: Ask) -> None:
    job_id = (await hasty.submit(image_request())).job.id
    [frozen] = await hasty.take("w1", 1)
    assert await hasty.reap("w2") == 0
    await asyncio.sleep(0.3)
    assert await hasty.reap("w2") == 1
    [second] = await hasty.take("w2", 1)
    assert (second.job.id, second.job.deliveries, second.job.suspect_attempts) == (job_id, 2, 0)
    assert second.token != frozen.token
    assert (await hasty.renew([frozen])).lost == {job_id}
    assert not await hasty.progress(frozen, 1, 4)
    assert not await hasty.preview(frozen, 0, "image/png", "aa")
    assert not await hasty.succeed(frozen, RESULT)
    assert not await hasty.fail(frozen, Failure(code="x", message="y"))
    assert (await hasty.get(job_id)).state is JobState.RUNNING
    assert await hasty.succeed(second, RESULT)


async def test_a_renewed_lease_is_not_reaped(hasty: JobQueue, image_request: Ask) -> None:
    await hasty.submit(image_request())
    claims = await hasty.take("w1", 1)
    for _ in range(5):
        await asyncio.sleep(0.1)
        assert await hasty.renew(claims) == Renewal()
        assert await hasty.reap("w2") == 0
    assert await hasty.succeed(claims[0], RESULT)


async def test_a_returned_job_keeps_its_place(queue: JobQueue, image_request: Ask) -> None:
    first = (await queue.submit(image_request())).job
    [claim] = await queue.take("w", 1)
    later = (await queue.submit(image_request())).job
    assert await queue.give_back(claim, suspect=False, reason="drain")
    assert await queue.give_back(claim, suspect=False, reason="drain"), "sent again"
    back = await queue.get(first.id)
    assert (back.state, back.worker, back.started_at) == (JobState.QUEUED, None, None)
    assert (await queue.position(first), await queue.position(later)) == (0, 1)
    assert [claim.job.id for claim in await queue.take("w2", 2)] == [first.id, later.id]
    assert await queue.give_back(claim, suspect=False, reason="drain"), "the old claim's end was heard before"
    assert (await queue.get(first.id)).worker == "w2", "and changes nothing"


async def test_a_poison_job_fails_after_three_attempts_with_a_letter(
    queue: JobQueue, redis: Redis, settings: Settings, image_request: Ask
) -> None:
    job_id = (await queue.submit(image_request(prompt="crash"))).job.id
    for attempt in range(3):
        [claim] = await queue.take("w", 1)
        assert claim.suspect == (attempt > 0)
        assert await queue.give_back(claim, suspect=True, reason="worker_crashed")
    assert await queue.take("w", 1) == []
    job = await queue.get(job_id)
    assert job.state is JobState.FAILED
    assert job.failure is not None
    assert job.failure.code == "worker_crashed"
    assert "3 times" in job.failure.message
    [letter] = await queue.dead_letters()
    assert (letter.job_id, letter.failure, letter.request) == (job_id, job.failure, job.request)
    assert (letter.deliveries, letter.suspect_attempts, letter.worker) == (3, 3, "w")
    assert (await queue.stats()).dead == 1
    assert (await kinds(redis, settings, job_id))[-1] == "failed"


async def test_uncounted_returns_end_after_ten_deliveries(queue: JobQueue, image_request: Ask) -> None:
    job_id = (await queue.submit(image_request())).job.id
    for _ in range(10):
        [claim] = await queue.take("w", 1)
        await queue.give_back(claim, suspect=False, reason="drain")
    job = await queue.get(job_id)
    assert job.failure is not None
    assert (job.state, job.failure.code, job.deliveries) == (JobState.FAILED, "too_many_deliveries", 10)
    assert [letter.job_id for letter in await queue.dead_letters()] == [job_id]


async def test_a_canceled_job_is_not_returned(hasty: JobQueue, image_request: Ask) -> None:
    for leave in (True, False):
        job_id = (await hasty.submit(image_request())).job.id
        [claim] = await hasty.take("w", 1)
        await hasty.cancel(job_id)
        if leave:
            await hasty.give_back(claim, suspect=False, reason="drain")
        else:
            await asyncio.sleep(0.3)
            await hasty.reap("w2")
        assert (await hasty.get(job_id)).state is JobState.CANCELED


async def test_progress_and_previews_are_told_once(
    queue: JobQueue, redis: Redis, settings: Settings, image_request: Ask
) -> None:
    job_id = (await queue.submit(image_request())).job.id
    [claim] = await queue.take("w", 1)
    for step in (1, 1, 3, 2):
        assert await queue.progress(claim, step, 4)
    for index in (0, 0, 1):
        assert await queue.preview(claim, index, "image/png", "aGk=")
    job = await queue.get(job_id)
    assert (job.step, job.total_steps) == (3, 4)
    events = await EventLog(redis, settings).read(job_id)
    assert [event.data for event in events if event.type == "progress"] == [
        {"step": 1, "total": 4},
        {"step": 3, "total": 4},
    ]
    assert [event.data["index"] for event in events if event.type == "preview"] == [0, 1]
    await queue.give_back(claim, suspect=False, reason="drain")
    [again] = await queue.take("w", 1)
    assert again.job.step == 0
    assert await queue.preview(again, 0, "image/png", "aGk=")
    assert (await kinds(redis, settings, job_id))[-1] == "preview"


async def test_a_job_that_waits_too_long_expires(redis: Redis, settings: Settings, image_request: Ask) -> None:
    queue = JobQueue(redis, settings.model_copy(update={"queue_wait_seconds": 0.2}))
    job_id = (await queue.submit(image_request())).job.id
    assert await queue.reap("w") == 0
    await asyncio.sleep(0.25)
    assert await queue.reap("w") == 1
    job = await queue.get(job_id)
    assert job.failure is not None
    assert (job.state, job.failure.code) == (JobState.FAILED, "expired")
    assert await queue.take("w", 1) == []


async def test_waiting_ends_when_something_is_enqueued(queue: JobQueue, image_request: Ask) -> None:
    await queue.wait(0.01)
    began = time.monotonic()
    waiting = asyncio.create_task(queue.wait(2))
    await asyncio.sleep(0.1)
    await queue.submit(image_request())
    assert await waiting == frozenset()
    assert 0.1 <= time.monotonic() - began < 1
    began = time.monotonic()
    await queue.wait(0.2)
    assert time.monotonic() - began >= 0.19, "what was heard does not ring again"


async def test_heartbeats_end_with_the_lease(hasty: JobQueue) -> None:
    info = WorkerInfo(name="w1", state="ready", models=("m",), profiles={"m": ("float",)}, room=4)
    await hasty.heartbeat("w1", info)
    await hasty.heartbeat("w2", info.model_copy(update={"name": "w2", "state": "draining"}))
    assert {worker.name: worker.serves("m", "float") for worker in await hasty.workers()} == {"w1": True, "w2": False}
    await hasty.farewell("w2")
    assert await hasty.workers() == [info]
    await asyncio.sleep(0.25)
    assert await hasty.workers() == []
