"""The supervisor with a real Redis and a real child process that misbehaves on demand."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from jobs.events import EventLog
from jobs.job import JobState
from jobs.redis_server import RedisServer, connect, resolve
from jobs.settings import Settings
from tests.workers.bench import FAKE, BenchOf, eventually


def test_a_job_is_run_settled_and_told(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of() as bench:
            job = await bench.final(await bench.submit("steps 8 0.01"))
            assert job.state is JobState.SUCCEEDED
            assert job.result is not None
            assert [path.name for path in bench.files] == [file.id for file in job.result.files]
            assert 0 <= job.result.costs.queue_seconds < 10
            redis = connect(bench.url)
            events = await EventLog(redis, bench.settings).read(job.id)
            await redis.aclose()
            kinds = [event.type for event in events]
            assert kinds[:2] == ["queued", "started"]
            assert kinds[-1] == "succeeded"
            assert kinds.count("preview") == 8
            steps = [event.data["step"] for event in events if event.type == "progress"]
            assert steps == sorted(steps)
            assert steps[-1] == 8
            assert len(steps) < 8, "progress is throttled"
            assert bench.value("jobs_completed_total", model="null", profile="float", status="succeeded") == 1
            [worker] = await bench.queue.workers()
            assert worker.serves("null", "float")

    asyncio.run(story())


def test_a_failure_of_a_job_leaves_the_child_alive(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of() as bench:
            failed, fine = await bench.submit("fail"), await bench.submit("red")
            job = await bench.final(failed)
            assert job.failure is not None
            assert job.failure.code == "generation_failed"
            assert (await bench.final(fine)).state is JobState.SUCCEEDED
            assert bench.restarts == {}

    asyncio.run(story())


@pytest.mark.parametrize("deed", ["crash", "segv", "exit0", "garbage", "deaf"])
def test_a_job_that_kills_its_child_fails_alone(bench_of: BenchOf, deed: str) -> None:
    async def story() -> None:
        async with bench_of(last_words_seconds=0.2) as bench:
            good = [await bench.submit("sleep 0.8") for _ in range(2)]
            await bench.running(*good)
            poison = await bench.submit(deed)
            job = await bench.final(poison)
            assert job.failure is not None
            assert job.failure.code == "worker_crashed"
            assert job.suspect_attempts == 3
            for job_id in good:
                neighbour = await bench.final(job_id)
                assert neighbour.state is JobState.SUCCEEDED
                assert neighbour.suspect_attempts == 1, "after the first crash each runs alone"
            assert bench.restarts == {"crash": 3}
            assert len(bench.files) == len(good)
            assert [letter.job_id for letter in await bench.queue.dead_letters()] == [poison]
            assert bench.value("jobs_dead_lettered_total", reason="worker_crashed") == 1

    asyncio.run(story())


def test_a_kill_from_outside_counts_against_nobody(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of() as bench:
            ids = [await bench.submit("sleep 1") for _ in range(3)]
            await bench.running(*ids)
            os.kill(bench.child_pid, signal.SIGKILL)
            killed = time.monotonic()
            for job_id in ids:
                job = await bench.final(job_id)
                assert job.state is JobState.SUCCEEDED
                assert (job.deliveries, job.suspect_attempts) == (2, 0)
            assert time.monotonic() - killed < 10
            assert bench.restarts == {"outside": 1}

    asyncio.run(story())


def test_a_job_that_hangs_is_blamed_and_its_neighbours_are_not(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(first_step_seconds=0.8, max_suspect_attempts=1) as bench:
            stuck = await bench.submit("hang")
            fine = await bench.submit("steps 40 0.05")
            job = await bench.final(stuck)
            assert job.failure is not None
            assert job.failure.code == "timeout"
            neighbour = await bench.final(fine)
            assert neighbour.state is JobState.SUCCEEDED
            assert (neighbour.deliveries, neighbour.suspect_attempts) == (2, 0)
            assert bench.restarts == {"hang": 1}

    asyncio.run(story())


def test_a_silent_child_is_replaced_and_one_stopped_from_outside_is_no_suspect(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(alive_seconds=1.2, max_suspect_attempts=1) as bench:
            job = await bench.final(await bench.submit("mute"))
            assert job.failure is not None
            assert job.failure.code == "timeout"
            frozen = await bench.submit("sleep 1")
            await bench.running(frozen)
            os.kill(bench.child_pid, signal.SIGSTOP)
            job = await bench.final(frozen)
            assert job.state is JobState.SUCCEEDED
            assert (job.deliveries, job.suspect_attempts) == (2, 0)
            assert bench.restarts == {"hang": 1, "outside": 1}

    asyncio.run(story())


def test_a_cancel_reaches_a_running_job_within_milliseconds(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(lease_seconds=30) as bench:
            job_id = await bench.submit("sleep 30")
            await bench.running(job_id)
            asked = time.monotonic()
            await bench.queue.cancel(job_id)
            assert (await bench.final(job_id)).state is JobState.CANCELED
            assert time.monotonic() - asked < 0.5
            assert bench.files == []

    asyncio.run(story())


def test_a_cancel_that_is_not_confirmed_costs_the_child_but_not_its_other_jobs(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(cancel_seconds=0.5) as bench:
            deaf, fine = await bench.submit("hang"), await bench.submit("sleep 3")
            await bench.running(deaf, fine)
            await bench.queue.cancel(deaf)
            assert (await bench.final(deaf)).state is JobState.CANCELED
            job = await bench.final(fine)
            assert job.state is JobState.SUCCEEDED
            assert (job.deliveries, job.suspect_attempts) == (2, 0)

    asyncio.run(story())


def test_a_lost_lease_stops_the_run_and_its_files_go(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(sweep_seconds=0.2) as bench:
            slow, late = await bench.submit("sleep 30"), await bench.submit("sleep 1")
            await bench.running(slow, late)
            redis = connect(bench.url)
            for job_id in (slow, late):  # as if another worker had taken both while we were frozen
                await redis.hset(f"{bench.settings.namespace}:job:{job_id}", "token", "f" * 16)
            await eventually(lambda: bench.value("leases_lost_total") == 2)
            await bench.until_idle()
            await redis.aclose()
            assert bench.files == []
            assert (await bench.queue.get(slow)).state is JobState.RUNNING, "not ours to settle"
            assert bench.restarts == {}

    asyncio.run(story())


def test_what_never_became_a_result_is_swept(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(sweep_seconds=0.1, lease_seconds=0.5) as bench:
            job = await bench.final(await bench.submit("red"))
            [kept] = bench.files
            orphan = kept.with_name(kept.name.replace(kept.name.split("-")[1], "e" * 16))
            orphan.write_bytes(b"late")
            os.utime(orphan, (time.time() - 60, time.time() - 60))
            await eventually(lambda: not orphan.exists())
            assert bench.files == [kept]
            assert job.state is JobState.SUCCEEDED

    asyncio.run(story())


def test_videos_never_take_all_room(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(max_running=4, max_running_videos=2) as bench:
            videos = [await bench.submit("sleep 1.5", frames=5) for _ in range(6)]
            await bench.running(*videos[:2])
            picture = await bench.submit("red")
            assert (await bench.final(picture)).state is JobState.SUCCEEDED
            states = [(await bench.queue.get(job_id)).state for job_id in videos]
            assert states.count(JobState.RUNNING) == 2 and states.count(JobState.QUEUED) == 4
            assert (await bench.final(videos[2])).state is JobState.SUCCEEDED, "the next ones follow"

    asyncio.run(story())


def test_a_worker_takes_from_its_lanes_only(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(lanes=("video",)) as bench:
            picture, video = await bench.submit("red"), await bench.submit("red", frames=5)
            assert (await bench.final(video)).state is JobState.SUCCEEDED
            assert (await bench.queue.get(picture)).state is JobState.QUEUED

    asyncio.run(story())


def test_a_drain_finishes_what_runs_and_leaves_the_rest(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(max_running=2) as bench:
            ids = [await bench.submit("sleep 0.6") for _ in range(3)]
            await bench.running(*ids[:2])
            bench.supervisor.drain()
            await bench.working
            jobs = [await bench.queue.get(job_id) for job_id in ids]
            assert [job.state for job in jobs] == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.QUEUED]
            assert await bench.queue.workers() == []

    asyncio.run(story())


def test_a_drain_past_its_deadline_gives_back_uncounted(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(drain_seconds=0.2) as bench:
            job_id = await bench.submit("sleep 30")
            await bench.running(job_id)
            bench.supervisor.drain()
            await asyncio.wait_for(bench.working, 5)
            job = await bench.queue.get(job_id)
            assert (job.state, job.suspect_attempts) == (JobState.QUEUED, 0)
            assert bench.value("jobs_retried_total", reason="drain") == 1

    asyncio.run(story())


def test_a_result_survives_the_absence_of_redis(bench_of: BenchOf, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "own")
    server = RedisServer(settings)

    async def story() -> None:
        await server.start()
        async with bench_of(url=resolve(settings)) as bench:
            job_id = await bench.submit("sleep 0.5")
            await bench.running(job_id)
            await server.stop()
            await asyncio.sleep(1)
            await server.start()
            job = await bench.final(job_id)
            assert job.state is JobState.SUCCEEDED
            assert job.deliveries == 1, "settled, not run again"
        await server.stop()

    asyncio.run(story())


def test_a_child_that_never_gets_ready_is_replaced_ever_slower(bench_of: BenchOf) -> None:
    async def story() -> None:
        async with bench_of(command=(*FAKE, "--never-ready"), start_seconds=0.1, alive_seconds=0.1) as bench:
            await asyncio.sleep(2)
            assert 2 <= bench.restarts["start"] <= 5
            [worker] = await bench.queue.workers()
            assert worker.state == "starting"

    asyncio.run(story())
