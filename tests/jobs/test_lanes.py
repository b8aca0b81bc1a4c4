"""Lanes: kinds of jobs wait apart, workers take from those that they are told, and nothing else tells them apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from jobs.errors import NotFound
from jobs.job import Costs, JobResult, JobState, Used
from jobs.keys import Keys
from jobs.queue import JobQueue
from jobs.request import ImageRequest, Priority, VideoRequest
from jobs.settings import Settings

pytestmark = pytest.mark.anyio
Picture = Callable[..., ImageRequest]
Video = Callable[..., VideoRequest]


def result(request: ImageRequest | VideoRequest, seconds: float) -> JobResult:
    used = Used(
        model=request.model, profile=request.profile, backend="torch", seed=1, num_inference_steps=4,
        guidance_scale=1.0, width=64, height=64, scheduler="none",
    )  # fmt: skip
    return JobResult(files=(), used=used, costs=Costs(denoise_seconds=seconds))


@pytest.fixture
def pictures(redis: Redis, settings: Settings) -> JobQueue:
    """A worker's queue that takes pictures only."""
    return JobQueue(redis, settings, ["image"])


@pytest.fixture
def videos(redis: Redis, settings: Settings) -> JobQueue:
    """A worker's queue that takes videos only."""
    return JobQueue(redis, settings, ["video"])


async def test_an_unknown_lane_is_refused(redis: Redis, settings: Settings) -> None:
    with pytest.raises(ValueError, match="sound"):
        JobQueue(redis, settings, ["sound"])
    with pytest.raises(ValueError, match="lanes must be"):
        JobQueue(redis, settings, [])


async def test_a_worker_takes_from_its_lanes_only(
    queue: JobQueue, pictures: JobQueue, videos: JobQueue, image_request: Picture, video_request: Video
) -> None:
    video = (await queue.submit(video_request())).job
    picture = (await queue.submit(image_request())).job
    assert [claim.job.id for claim in await pictures.take("p", 8)] == [picture.id]
    assert [claim.job.id for claim in await videos.take("v", 8)] == [video.id]
    assert await queue.take("both", 8) == []


async def test_of_both_lanes_the_most_urgent_goes_first(
    queue: JobQueue, image_request: Picture, video_request: Video
) -> None:
    asked: list[ImageRequest | VideoRequest] = [
        video_request(),
        image_request(),
        video_request(priority="high"),
        image_request(priority="low"),
    ]
    made = [(await queue.submit(request)).job.id for request in asked]
    last = await queue.get(made[3])
    assert await queue.position(last) == 1, "within its lane"
    assert await queue.position(last, ["image", "video"]) == 3
    assert await queue.position(await queue.get(made[0]), ["image"]) == 1
    assert [claim.job.id for claim in await queue.take("w", 8)] == [made[2], made[0], made[1], made[3]]


async def test_a_bell_rings_in_its_lane(
    queue: JobQueue, pictures: JobQueue, videos: JobQueue, image_request: Picture, video_request: Video
) -> None:
    waiting = asyncio.create_task(pictures.wait(0.3))
    job = (await queue.submit(video_request())).job
    [claim] = await videos.take("v", 1)
    assert await queue.cancel(job.id)
    assert await waiting == frozenset()
    assert await videos.wait(1) == {job.id}
    assert (await videos.renew([claim])).canceled == {job.id}
    both = (await queue.submit(image_request())).job
    await queue.take("w", 1)
    await queue.cancel(both.id)
    assert both.id in await queue.wait(1)


async def test_stats_and_dead_letters_of_all_lanes(
    queue: JobQueue, settings: Settings, image_request: Picture, video_request: Video
) -> None:
    await queue.submit(image_request())
    for priority in ("normal", "low"):
        await queue.submit(video_request(priority=priority))
    stats = await queue.stats()
    assert stats.lanes["image"].depth == {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 0}
    assert stats.lanes["video"].depth == {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 1}
    assert stats.depth[Priority.NORMAL] == 2
    assert stats.lanes["video"].oldest_age[Priority.LOW] > 0
    dead: list[str] = []
    for _ in range(2):
        for _ in range(settings.max_suspect_attempts):
            [claim] = await queue.take("w", 1)
            await queue.give_back(claim, suspect=True, reason="worker_crashed")
        dead.append(claim.job.id)
    assert [letter.job_id for letter in await queue.dead_letters()] == dead[::-1]
    assert (await queue.stats()).dead == 2


async def test_any_worker_reaps_every_lane(
    redis: Redis, settings: Settings, image_request: Picture, video_request: Video
) -> None:
    short = settings.model_copy(update={"lease_seconds": 0.2})
    mortal, other = JobQueue(redis, short, ["video"]), JobQueue(redis, short, ["image"])
    job = (await mortal.submit(video_request())).job
    await mortal.take("doomed", 1)
    await asyncio.sleep(0.3)
    assert await other.reap("other") == 1
    assert (await other.get(job.id)).state is JobState.QUEUED


async def test_a_job_stored_before_there_were_lanes_is_a_picture(
    queue: JobQueue, redis: Redis, settings: Settings, image_request: Picture
) -> None:
    job = (await queue.submit(image_request())).job
    await redis.hdel(Keys(settings.namespace).job(job.id), "lane", "estimate")
    [claim] = await queue.take("w", 1)
    assert (claim.job.id, (await queue.backlog()).running[0].estimate) == (job.id, None)
    assert await queue.succeed(claim, result(image_request(), 1.0))


async def test_the_backlog_tells_what_is_left(
    queue: JobQueue, settings: Settings, image_request: Picture, video_request: Video
) -> None:
    await queue.submit(video_request(), estimate=40.0)
    [claim] = await queue.take("w", 1)
    await queue.progress(claim, 1, 4)
    low = (await queue.submit(image_request(priority="low"))).job
    high = (await queue.submit(image_request(priority="high"), estimate=2.5)).job
    backlog = await queue.backlog()
    [running] = backlog.running
    assert (running.id, running.lane, running.estimate, running.left) == (claim.job.id, "video", 40.0, 0.75)
    assert {job.id: job.estimate for job in backlog.waiting} == {low.id: None, high.id: 2.5}
    due = {job.id: job.due for job in backlog.waiting}
    assert due[low.id] - due[high.id] == pytest.approx(2 * settings.ageing_seconds, abs=5)


async def test_what_succeeded_can_be_learned_from(queue: JobQueue, video_request: Video) -> None:
    assert await queue.finished() == ("0", [])
    for seconds in (1.0, 2.0, 3.0):
        await queue.submit(video_request())
        [claim] = await queue.take("w", 1)
        await queue.succeed(claim, result(video_request(), seconds))
    place, jobs = await queue.finished(limit=2)
    assert [job.result.costs.denoise_seconds for job in jobs if job.result] == [2.0, 3.0]
    assert await queue.finished(place) == (place, [])


async def test_a_deleted_job_is_gone_for_everybody(queue: JobQueue, video_request: Video) -> None:
    waiting = (await queue.submit(video_request(), owner="alice", idempotency_key="k")).job
    with pytest.raises(NotFound):
        await queue.delete(waiting.id, owner="bob")
    assert (await queue.delete(waiting.id, owner="alice")).id == waiting.id
    with pytest.raises(NotFound):
        await queue.get(waiting.id)
    with pytest.raises(NotFound):
        await queue.delete(waiting.id)
    assert (await queue.list("alice")).jobs == []
    again = await queue.submit(video_request(), owner="alice", idempotency_key="k")
    assert again.created
    [claim] = await queue.take("w", 8)
    await queue.delete(again.job.id)
    assert (await queue.list("alice")).jobs == []
    assert (await queue.renew([claim])).canceled == {again.job.id}
    assert not await queue.succeed(claim, result(video_request(), 1.0)), "its files are to be dropped"
    assert (await queue.stats()).pending == 0
    assert await queue.finished() == ("0", [])


async def test_a_deleted_job_whose_worker_dies_is_gone(queue: JobQueue, video_request: Video) -> None:
    job = (await queue.submit(video_request())).job
    [claim] = await queue.take("w", 1)
    await queue.delete(job.id)
    assert await queue.give_back(claim, suspect=True, reason="worker_crashed")
    assert await queue.take("w", 1) == []
    with pytest.raises(NotFound):
        await queue.get(job.id)
