"""The promise under faults: a server that freezes, dies and comes back loses and doubles nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from jobs import connection
from jobs.errors import Unavailable
from jobs.events import EventLog
from jobs.job import Costs, JobResult, JobState, Used
from jobs.link import translated
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer, connect, resolve
from jobs.request import ImageRequest, Priority
from jobs.settings import Settings

pytestmark = pytest.mark.anyio
Ask = Callable[..., ImageRequest]

RESULT = JobResult(
    files=(),
    costs=Costs(),
    used=Used(
        model="null",
        profile="float",
        backend="null",
        seed=1,
        num_inference_steps=4,
        guidance_scale=1.0,
        width=64,
        height=64,
        scheduler="none",
    ),
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a data folder without a server yet; clients lose patience after 0.5 s."""
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT", 0.5)
    return Settings.model_validate({"data": tmp_path, "redis_url": None, "lease_seconds": 3})


@contextmanager
def serving(settings: Settings) -> Iterator[RedisServer]:
    server = RedisServer(settings)
    server.start_now()
    try:
        yield server
    finally:
        server.stop_now()


def send(server: RedisServer, number: signal.Signals) -> None:
    assert server.process is not None
    os.kill(server.process.pid, number)


async def until_back(server: RedisServer, dead: int) -> None:
    async with asyncio.timeout(10):
        while server.process is None or server.process.pid == dead:  # noqa: ASYNC110  # a thread starts it
            await asyncio.sleep(0.01)


async def test_a_frozen_server_makes_the_library_repeat_writes_that_act_once(own: Settings, image_request: Ask) -> None:
    with serving(own) as server:
        redis = connect(resolve(own))
        queue = JobQueue(redis, own)
        for i in range(4):
            await queue.submit(image_request(seed=i))
        done, returned, stepped = await queue.take("w", 3)
        send(server, signal.SIGSTOP)
        work = asyncio.gather(
            queue.submit(image_request(seed=9), owner="a", idempotency_key="k"),
            queue.take("w2", 1),
            queue.succeed(done, RESULT),
            queue.give_back(returned, suspect=True, reason="worker_crashed"),
            queue.progress(stepped, 1, 4),
        )
        await asyncio.sleep(1.3)
        send(server, signal.SIGCONT)
        submission, taken, succeeded, gave_back, progressed = await work
        assert submission.created
        assert (len(taken), succeeded, gave_back, progressed) == (1, True, True, True)
        stats = await queue.stats()
        # five submitted: one done, one in w's hands, one in w2's; the returned and the new one wait
        assert (stats.pending, stats.depth[Priority.NORMAL]) in {(2, 2)}
        job = await queue.get(returned.job.id)
        assert job.suspect_attempts == 1
        log = EventLog(redis, own)
        kinds = [event.type for event in await log.read(stepped.job.id)]
        assert kinds.count("progress") == 1
        assert [event.type for event in await log.read(done.job.id)].count("succeeded") == 1
        await redis.aclose()


async def test_jobs_whose_take_was_never_answered_are_handed_out_again(own: Settings, image_request: Ask) -> None:
    with serving(own) as server:
        patient, hasty = connect(resolve(own)), connect(resolve(own), retries=0)
        queue = JobQueue(hasty, own)
        assert await queue.take("w", 1) == []
        ids = {(await JobQueue(patient, own).submit(image_request(seed=i))).job.id for i in range(3)}
        await queue.wait(0.05)
        send(server, signal.SIGSTOP)
        with pytest.raises(Unavailable) as away:
            await queue.take("w", 2)
        assert away.value.retry_after is not None
        send(server, signal.SIGCONT)
        await asyncio.sleep(0.2)
        assert (await JobQueue(patient, own).stats()).pending == 2, "the server did take them"
        claims = await queue.take("w", 2)
        assert [claim.job.deliveries for claim in claims] == [1, 1]
        claims += await queue.take("w", 2)
        assert {claim.job.id for claim in claims} == ids
        await patient.aclose()
        await hasty.aclose()


async def unsettled(queue: JobQueue) -> bool:
    """Whether a job waits or is leased."""
    stats = await queue.stats()
    return any(stats.depth.values()) or stats.pending > 0


async def test_kill_9_of_the_server_under_load_loses_nothing(own: Settings, image_request: Ask) -> None:
    """Eight clients submit, three workers settle, the server is killed five times; every accepted job ends once."""
    with serving(own) as server:
        redis = connect(resolve(own))
        accepted: list[str] = []
        settled: list[str] = []
        killed, submitted = asyncio.Event(), asyncio.Event()

        async def client(number: int) -> None:
            queue, count = JobQueue(redis, own.model_copy(update={"max_queue": 100_000})), 0
            while not killed.is_set():
                count += 1
                first = await queue.submit(image_request(), idempotency_key=f"{number}-{count}")
                if count % 5 == 0:
                    assert await queue.submit(image_request(), idempotency_key=f"{number}-{count}") != first
                accepted.append(first.job.id)
                await asyncio.sleep(0.005)

        async def clients() -> None:
            await asyncio.gather(*(client(i) for i in range(8)))
            submitted.set()  # only now: a submit that outlives the last kill is accepted too

        async def worker(name: str) -> None:
            queue = JobQueue(redis, own)
            while not submitted.is_set() or await unsettled(queue):
                for claim in await queue.take(name, 4):
                    if await queue.succeed(claim, RESULT):
                        settled.append(claim.job.id)
                await queue.wait(0.1)
                if submitted.is_set():  # the answer to a take may have died with the server: its lease runs out
                    await queue.reap(name)

        async def killer() -> None:
            chance = random.Random(5)
            for _ in range(5):
                await asyncio.sleep(0.3 + chance.random() * 0.3)
                dead = server.process.pid if server.process else 0
                send(server, signal.SIGKILL)
                await until_back(server, dead)
            await asyncio.sleep(1)
            killed.set()

        await asyncio.gather(clients(), *(worker(f"w{i}") for i in range(3)), killer())
        assert len(accepted) == len(set(accepted)) > 100
        assert sorted(settled) == sorted(accepted), "each accepted job settled, and by one worker once"
        states = [(await JobQueue(redis, own).get(job_id)).state for job_id in accepted]
        assert set(states) == {JobState.SUCCEEDED}
        await redis.aclose()


async def test_after_a_restart_living_workers_may_renew_first(own: Settings, image_request: Ask) -> None:
    with serving(own) as server:
        redis = connect(resolve(own))
        queue = JobQueue(redis, own)
        for i in range(2):
            await queue.submit(image_request(seed=i))
        alive, _dead = await queue.take("w", 2)
        await asyncio.sleep(2)
        send(server, signal.SIGKILL)
        await asyncio.sleep(1.3)
        assert await queue.reap("other") == 0, "both leases have ended by the clock, but nobody could renew"
        assert (await queue.renew([alive])).lost == frozenset()
        await asyncio.sleep(2.4)
        assert await queue.reap("other") == 1
        assert await queue.succeed(alive, RESULT)
        await redis.aclose()


async def test_a_server_that_refuses_writes_is_unavailable(own: Settings, image_request: Ask) -> None:
    with serving(own):
        redis = connect(resolve(own))
        queue = JobQueue(redis, own)
        await redis.config_set("maxmemory", "1mb")
        with pytest.raises(Unavailable, match=r"away|refuses"):
            for i in range(2000):
                await queue.submit(image_request(prompt="long " * 300), idempotency_key=str(i))
        with pytest.raises(Unavailable):
            await queue.probe()
        await redis.config_set("maxmemory", "512mb")
        await queue.probe()
        await redis.aclose()


async def test_a_cancel_is_heard_whenever_it_comes(queue: JobQueue) -> None:
    await queue.probe()
    for moment in range(25):
        waiting = asyncio.create_task(queue.wait(0.2))
        for _ in range(moment):
            await asyncio.sleep(0)
        waiting.cancel()
        async with asyncio.timeout(1):
            [answer] = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(answer, asyncio.CancelledError), f"lost after {moment} switches"


def test_faults_of_our_own_are_not_called_unavailable() -> None:
    with pytest.raises(ResponseError), translated():
        raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    with pytest.raises(Unavailable, match="No space left"), translated():
        raise ResponseError("MISCONF Errors writing to the AOF file: No space left on device")


async def test_a_dead_server_is_reported_within_the_retries(own: Settings) -> None:
    redis = connect(f"unix://{own.data}/nobody.sock", retries=3)
    with pytest.raises(Unavailable, match="away"):
        await asyncio.wait_for(JobQueue(redis, own).stats(), 3)
    await redis.aclose()
    with pytest.raises(Unavailable, match="REDIS_URL"):
        resolve(own)
