"""Random walks through the queue against a model: every move legal, every claim fenced, every index true."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from jobs.errors import JobFinished, NotFound
from jobs.job import TRANSITIONS, Costs, Failure, JobResult, JobState, Used
from jobs.keys import LANES, RETURNED, Keys
from jobs.queue import Claim, JobQueue
from jobs.redis_server import connect
from jobs.request import AnyRequest, ImageRequest, Priority, VideoRequest
from jobs.settings import Settings

T = TypeVar("T")
USED = Used(
    model="m",
    profile="float",
    backend="null",
    seed=1,
    num_inference_steps=4,
    guidance_scale=1.0,
    width=64,
    height=64,
    scheduler="none",
)
SETTLE: dict[str, Callable[[JobQueue, Claim], Coroutine[Any, Any, bool]]] = {
    "succeeded": lambda queue, claim: queue.succeed(claim, JobResult(files=(), used=USED, costs=Costs())),
    "failed": lambda queue, claim: queue.fail(claim, Failure(code="x", message="y")),
    "canceled": lambda queue, claim: queue.confirm_cancel(claim),
}


@dataclass
class Known:
    """What the model believes of a job."""

    owner: str
    lane: str
    state: JobState = JobState.QUEUED
    deleted: bool = False
    holder: str | None = None
    asked: bool = False
    suspects: int = 0
    deliveries: int = 0
    claims: list[Claim] = field(default_factory=list)


def request_of(lane: str, priority: Priority) -> AnyRequest:
    fields: dict[str, Any] = {
        "model": "m", "profile": "float", "prompt": "x", "width": 64, "height": 64, "num_inference_steps": 4,
        "guidance_scale": 1.0, "seed": 1, "priority": priority,
    }  # fmt: skip
    return ImageRequest(**fields) if lane == "image" else VideoRequest(**fields, num_frames=5, fps=8)


class Walk(RuleBasedStateMachine):
    """Three workers of two lanes, a few jobs, any order of deeds, old claims used again and again."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.settings = Settings.model_validate(
            {"redis_url": self.url, "namespace": secrets.token_hex(6), "lease_seconds": 600, "max_deliveries": 5}
        )
        self.keys = Keys(self.settings.namespace)
        self.redis: Redis = self.do(self.open())
        self.queue = JobQueue(self.redis, self.settings)
        self.lanes = {"w1": ("image",), "w2": ("video",), "w3": LANES}
        self.workers = {name: JobQueue(self.redis, self.settings, lanes) for name, lanes in self.lanes.items()}
        self.reaper = JobQueue(self.redis, self.settings.model_copy(update={"lease_seconds": 0.001}))
        self.jobs: dict[str, Known] = {}

    async def open(self) -> Redis:
        return connect(self.url)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.do(self.redis.aclose())
            self.runner.close()

    def claims(self) -> list[tuple[str, Claim]]:
        return [(job_id, claim) for job_id, job in self.jobs.items() for claim in job.claims]

    def pick(self, data: st.DataObject) -> tuple[str, Known, Claim, bool]:
        job_id, claim = data.draw(st.sampled_from(self.claims()))
        job = self.jobs[job_id]
        return job_id, job, claim, job.state is JobState.RUNNING and job.holder == claim.token

    def released(self, job: Known) -> JobState:
        if job.asked:
            return JobState.CANCELED
        worn = job.suspects >= self.settings.max_suspect_attempts or job.deliveries >= self.settings.max_deliveries
        return JobState.FAILED if worn else JobState.QUEUED

    @rule(owner=st.sampled_from(["", "a", "b"]), priority=st.sampled_from(list(Priority)), lane=st.sampled_from(LANES))
    def submit(self, owner: str, priority: Priority, lane: str) -> None:
        job_id = f"{len(self.jobs):032x}"
        assert self.do(self.queue.submit(request_of(lane, priority), owner=owner, job_id=job_id)).created
        self.jobs[job_id] = Known(owner, lane)

    @rule(worker=st.sampled_from(["w1", "w2", "w3"]), room=st.integers(1, 3))
    def take(self, worker: str, room: int) -> None:
        own = [job for job in self.jobs.values() if job.lane in self.lanes[worker]]
        waiting = sum(job.state is JobState.QUEUED for job in own)
        claims = self.do(self.workers[worker].take(worker, room))
        assert len(claims) == min(room, waiting)
        for claim in claims:
            job = self.jobs[claim.job.id]
            assert job.state is JobState.QUEUED and job.lane in self.lanes[worker]
            job.state, job.holder = JobState.RUNNING, claim.token
            job.deliveries += 1
            job.claims.append(claim)

    @precondition(lambda self: self.claims())
    @rule(data=st.data(), verdict=st.sampled_from(sorted(SETTLE)))
    def settle(self, data: st.DataObject, verdict: str) -> None:
        _, job, claim, held = self.pick(data)
        again = job.state.value == verdict and job.holder == claim.token and not job.deleted
        dropped = job.deleted and verdict == "succeeded"
        assert self.do(SETTLE[verdict](self.queue, claim)) == ((held and not dropped) or again)
        if held:
            job.state = JobState.CANCELED if dropped else JobState(verdict)

    @precondition(lambda self: self.claims())
    @rule(data=st.data(), suspect=st.booleans())
    def give_back(self, data: st.DataObject, suspect: bool) -> None:
        _, job, claim, held = self.pick(data)
        answer = self.do(self.queue.give_back(claim, suspect=suspect, reason="worker_crashed"))
        if held:
            assert answer
            job.suspects += suspect
            job.state, job.holder = self.released(job), None

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        if job.deleted:
            with pytest.raises(NotFound):
                self.do(self.queue.cancel(job_id))
            return
        if job.state in (JobState.SUCCEEDED, JobState.FAILED):
            with pytest.raises(JobFinished):
                self.do(self.queue.cancel(job_id))
            return
        self.do(self.queue.cancel(job_id))
        if job.state is JobState.QUEUED:
            job.state = JobState.CANCELED
        job.asked = True

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        if job.deleted:
            with pytest.raises(NotFound):
                self.do(self.queue.delete(job_id))
            return
        assert self.do(self.queue.delete(job_id)).state is job.state
        job.deleted = job.asked = True
        if job.state is JobState.QUEUED:
            job.state = JobState.CANCELED

    @rule()
    def let_leases_end(self) -> None:
        running = [job for job in self.jobs.values() if job.state is JobState.RUNNING]
        self.do(asyncio.sleep(0.003))
        assert self.do(self.reaper.reap("w3")) == len(running)
        for job in running:
            job.state, job.holder = self.released(job), None

    @precondition(lambda self: self.claims())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        job_id, job, claim, held = self.pick(data)
        answer = self.do(self.queue.renew([claim]))
        assert (job_id in answer.lost) == (not held)
        assert (job_id in answer.canceled) == (held and job.asked)

    @invariant()
    def redis_agrees(self) -> None:
        if hasattr(self, "jobs"):
            self.do(self.compare())

    async def compare(self) -> None:
        for job_id, known in self.jobs.items():
            if known.deleted:
                with pytest.raises(NotFound):
                    await self.queue.get(job_id)
                assert await self.redis.exists(self.keys.job(job_id)) == (known.state is JobState.RUNNING)
                continue
            job = await self.queue.get(job_id)
            assert (job.state, job.suspect_attempts, job.deliveries) == (known.state, known.suspects, known.deliveries)
        waiting: set[str] = set()
        running = 0
        for lane, priority in product(LANES, Priority):
            waiting |= {str(job_id) for job_id in await self.redis.zrange(self.keys.waiting(lane, priority), 0, -1)}
            if await self.redis.exists(self.keys.queue(lane, priority)):
                consumers = await self.redis.xinfo_consumers(self.keys.queue(lane, priority), "workers")
                running += sum(one["pending"] for one in consumers if one["name"] != RETURNED)
        assert waiting == {job_id for job_id, job in self.jobs.items() if job.state is JobState.QUEUED}
        assert running == sum(job.state is JobState.RUNNING for job in self.jobs.values())
        owners = [job.owner for job in self.jobs.values() if job.state is JobState.QUEUED]
        counted = await self.redis.hgetall(self.keys.queued)
        assert counted == {owner: str(owners.count(owner)) for owner in set(owners)}


def test_random_walks(redis_url: str) -> None:
    Walk.url = redis_url
    walks = settings(
        max_examples=25,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # making a failing walk shorter takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(Walk, settings=walks)


def test_the_table_of_moves() -> None:
    assert {state for state in JobState if state.final} == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED}
    assert JobState.QUEUED in TRANSITIONS[JobState.RUNNING], "when a lease ends"
    assert JobState.SUCCEEDED not in TRANSITIONS[JobState.QUEUED]
