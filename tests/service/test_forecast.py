"""When jobs will be done: told in answers, learned from the queue itself, used to refuse and to say when to return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from jobs.connection import connect, resolve
from jobs.job import Costs, JobResult, Used
from jobs.queue import JobQueue
from jobs.records import WorkerInfo
from jobs.request import VideoRequest
from service.costs import CostBook
from service.forecast import Forecast, Outlook
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import Served

Video = Callable[..., VideoRequest]
ONE = WorkerInfo(name="w", state="ready", lanes=("video",))
PROFILES = {"tiny": ("float",), "moving": ("float",)}


def result(request: VideoRequest, seconds: float) -> JobResult:
    used = Used(
        model=request.model, profile=request.profile, backend="torch", seed=1, num_inference_steps=4,
        guidance_scale=1.0, width=64, height=64, scheduler="none",
    )  # fmt: skip
    return JobResult(files=(), used=used, costs=Costs(denoise_seconds=seconds))


async def finish(queue: JobQueue, request: VideoRequest, seconds: float) -> None:
    """A job that took so long."""
    await queue.submit(request)
    [claim] = await queue.take("w", 1)
    await queue.succeed(claim, result(request, seconds))


def in_queue(settings: Settings, work: Callable[[JobQueue], Any]) -> Any:
    async def run() -> Any:
        redis = connect(resolve(settings))
        try:
            return await work(JobQueue(redis, settings))
        finally:
            await redis.aclose()

    return asyncio.run(run())


def forecast(queue: JobQueue, *workers: WorkerInfo) -> Forecast:
    """One that has looked at nothing yet."""

    async def live() -> tuple[WorkerInfo, ...]:
        return workers or (ONE,)

    return Forecast(queue, CostBook(), live, 300.0)


def about(position: int | None, seconds: float) -> Outlook:
    close: Any = pytest.approx(seconds)
    return Outlook(position, close)


def test_time_ahead_is_added_up(make_settings: Callable[..., Settings], video_request: Video) -> None:
    async def work(queue: JobQueue) -> None:
        await finish(queue, video_request(), 10.0)
        first = (await queue.submit(video_request(), estimate=10.0)).job
        second = (await queue.submit(video_request(num_inference_steps=8))).job  # 20 s, not known when it came
        urgent = (await queue.submit(video_request(priority="high"))).job
        [claim] = await queue.take("w", 1)
        assert claim.job.id == urgent.id
        await queue.progress(claim, 1, 4)
        running = await queue.get(urgent.id)
        assert await forecast(queue).of(running) == about(None, 7.5)
        assert await forecast(queue).of(first) == about(0, 17.5)
        assert await forecast(queue).of(second) == about(1, 7.5 + 10 + 20)
        other = ONE.model_copy(update={"name": "v"})
        assert await forecast(queue, ONE, other).of(second) == about(1, 8.75 + 20)
        assert await forecast(queue).wait(video_request()) == pytest.approx(37.5)
        assert await forecast(queue).wait(video_request(priority="high")) == pytest.approx(7.5)
        assert await forecast(queue).room_in("video") == pytest.approx(7.5)
        assert await forecast(queue).room_in("image") is None

    in_queue(make_settings(), work)


def test_jobs_that_run_together_share(make_settings: Callable[..., Settings], video_request: Video) -> None:
    async def work(queue: JobQueue) -> None:
        await finish(queue, video_request(), 10.0)
        jobs = [(await queue.submit(video_request(num_inference_steps=4 * (i + 1)))).job for i in range(3)]
        await queue.take("w", 3)
        etas = [(await forecast(queue).of(await queue.get(job.id))).eta_seconds for job in jobs]
        assert etas == [pytest.approx(30), pytest.approx(50), pytest.approx(60)]

    in_queue(make_settings(), work)


def test_nothing_is_told_where_nothing_is_known(make_settings: Callable[..., Settings], video_request: Video) -> None:
    async def work(queue: JobQueue) -> None:
        job = (await queue.submit(video_request())).job
        assert await forecast(queue).of(job) == Outlook(0, None)
        await finish(queue, video_request(model="known", priority="high"), 10.0)
        own = (await queue.submit(video_request(model="known"))).job
        assert await forecast(queue).of(own) == Outlook(1, None), "what is ahead is unknown"
        assert await forecast(queue).wait(video_request()) is None

    in_queue(make_settings(), work)


def test_answers_carry_it_and_a_new_gateway_knows_it(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], video_request: Video
) -> None:
    settings = make_settings()
    fields = {"model": "moving", "width": 16, "height": 16, "guidance_scale": 3.0}

    async def before(queue: JobQueue) -> None:
        await queue.heartbeat("w", WorkerInfo(name="w", state="ready", profiles=PROFILES, room=1))
        await finish(queue, video_request(**fields), 12.0)

    in_queue(settings, before)
    body = {"prompt": "a red circle moves", "num_frames": 5}
    with serve(settings) as gateway:
        video = gateway.client.post("/v1/videos", json=body).json()
        assert (video["queue_position"], video["eta_seconds"]) == (0, pytest.approx(12))
        time.sleep(1.1)  # a look at the queue stands for a second
        next_one = gateway.client.post("/v1/jobs", json=body | {"kind": "video"}).json()
        assert (next_one["queue_position"], next_one["eta_seconds"]) == (1, pytest.approx(24))
        picture = gateway.client.post("/v1/jobs", json={"prompt": "a red circle"}).json()
        assert (picture["queue_position"], picture["eta_seconds"]) == (2, None)


def refusal(gateway: Served, **fields: Any) -> tuple[int, str, str | None]:
    answer = gateway.client.post("/v1/videos", json={"prompt": "a red circle moves"} | fields)
    return answer.status_code, answer.text, answer.headers.get("retry-after")


def test_cost_refuses_and_says_when_to_come_back(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], video_request: Video
) -> None:
    settings = make_settings(max_video_seconds=100, max_job_seconds=1, queue_wait_seconds=150, max_queue=3)
    fields = {"model": "moving", "width": 16, "height": 16, "guidance_scale": 3.0}

    async def before(queue: JobQueue) -> None:
        await queue.heartbeat("w", WorkerInfo(name="w", state="ready", profiles=PROFILES, room=1))
        await finish(queue, video_request(**fields), 90.0)
        await queue.submit(video_request(**fields), estimate=90.0)
        await queue.take("w", 1)

    in_queue(settings, before)
    with serve(settings) as gateway:
        status, text, _ = refusal(gateway, num_frames=9)
        assert status == 422
        assert "would take about 162 seconds; at most 100 are allowed" in text
        assert refusal(gateway, num_frames=5)[0] == 200
        time.sleep(1.1)
        status, text, retry_after = refusal(gateway, num_frames=5)
        assert (status, retry_after) == (429, "30")
        assert "about 180 s of work are ahead, and jobs wait 150 s at most; try again in 30 s" in text
        assert refusal(gateway, num_frames=5, priority="high")[0] == 200, "it would wait for one job only"
        gateway.client.post("/v1/videos", json={"prompt": "a", "priority": "high"})
        status, text, retry_after = refusal(gateway, priority="high", num_frames=1)
        assert (status, retry_after) == (429, "90"), text
        assert "the queue is full: 3 jobs wait; try again in 90 s" in text
