"""Nothing accepted is lost or doubled, whoever is killed or frozen: the promise of the whole house, on real parts.

The full count of faults is the default. `HALFTONE_CHAOS=0.2` inflicts a fifth of them, for a quick look.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from jobs.events import EventLog
from jobs.files import ResultStore
from jobs.job import Job
from jobs.queue import JobQueue
from jobs.redis_server import connect, resolve
from tests.chaos.history import History, content_faults, file_faults, log_faults, summary, unsettled
from tests.chaos.house import House
from tests.chaos.load import Client

FAULTS = {"child": 20, "supervisor": 20, "redis": 10, "gateway": 10, "frozen": 20}
CLIENTS = 6
SUPERVISORS = 2
GAP_JOBS, GAP_SECONDS = 8, 0.3
"""Between two faults: so many jobs, and so long at least. Faults that come while nothing works show nothing."""
STANDSTILL_SECONDS = 60.0
QUIET_SECONDS = 20.0


def schedule() -> list[str]:
    """Faults in an order that is the same in every run."""
    share = float(os.environ.get("HALFTONE_CHAOS", "1"))
    faults = [fault for fault, count in FAULTS.items() for _ in range(max(1, round(count * share)))]
    random.Random(7).shuffle(faults)
    return faults


async def inflict_all(house: House, history: History, faults: list[str]) -> None:
    """One fault after the other, whenever jobs flow; a frozen worker lies beside what happens next."""
    chance = random.Random(11)
    async with asyncio.TaskGroup() as group:
        for fault in faults:
            await flow(history)
            await house.thawed()
            group.create_task(house.inflict(fault, chance))


async def flow(history: History) -> None:
    """Wait until the next few jobs are settled."""
    enough = history.settled + GAP_JOBS
    await asyncio.sleep(GAP_SECONDS)
    async with asyncio.timeout(STANDSTILL_SECONDS):
        while history.settled < enough:  # noqa: ASYNC110  the history is plain data
            await asyncio.sleep(0.02)


async def all_jobs(house: House, history: History) -> tuple[list[Job], list[str]]:
    """Every job of the queue, once the house is quiet, and what is wrong with the queue's own account of them."""
    redis = connect(resolve(house.settings))
    queue, log = JobQueue(redis, house.settings), EventLog(redis, house.settings)
    prefix = f"{house.settings.namespace}:job:"
    ids = {key.removeprefix(prefix) async for key in redis.scan_iter(match=f"{prefix}*", count=1000)}
    jobs = [await queue.get(job_id) for job_id in sorted(ids)]
    faults = [f"accepted job {job_id} is gone" for job_id in history.accepted - ids]
    faults += [f"job {job_id} was made of nobody's wish" for job_id in ids - history.accepted]
    for job in jobs:
        faults += log_faults(job, await log.read(job.id))
    stats = await queue.stats()
    if stats.pending or any(stats.depth.values()):
        faults.append(f"the queue is not empty: {stats}")
    await log.close()
    await redis.aclose()
    return jobs, faults


async def story(data: Path) -> tuple[House, History, list[Job], list[str]]:
    history, enough = History(), asyncio.Event()
    async with House(data, SUPERVISORS) as house:
        clients = [Client(f"http://127.0.0.1:{house.port}", history, seed) for seed in range(CLIENTS)]
        working = [asyncio.create_task(client.work(enough)) for client in clients]
        await inflict_all(house, history, schedule())
        enough.set()
        await asyncio.gather(*working)
        jobs, faults = await all_jobs(house, history)
        # what the dead left behind goes within seconds, interrupted writes too
        deadline = time.monotonic() + QUIET_SECONDS
        while orphans := file_faults(jobs, {path.name for path in house.settings.results_dir.glob("??/*")}):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
    return house, history, jobs, faults + orphans + content_faults(jobs, ResultStore.of(house.settings))


@pytest.mark.timeout(600)
def test_nothing_accepted_is_lost_or_doubled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    house, history, jobs, faults = asyncio.run(story(tmp_path))
    faults += history.faults() + unsettled(jobs)
    failed = [job for job in jobs if job.failure is not None]
    with capsys.disabled():
        print(f"\nchaos: {dict(house.done)} in {time.monotonic() - began:.0f} s; {summary(history, jobs)}")
        print(faults or f"lost 0 of {len(jobs)}: below {3 / len(jobs):.2%} at 95 % confidence")
    if faults or failed:
        print(house.story())
    assert faults == []
    assert failed == [], "no job was at fault"
    wanted = {fault: schedule().count(fault) for fault in FAULTS}
    assert {fault: house.done[fault] for fault in FAULTS} == wanted, "every fault was inflicted"
    assert sum(job.deliveries > 1 for job in jobs) > len(schedule()) / 10, "the faults hit jobs that ran"
    assert len(jobs) >= GAP_JOBS * len(schedule()), "there was load"
