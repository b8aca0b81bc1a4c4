"""When a job will be done: what is left of the queue, what it will take, and who works on it. Knows no HTTP.

Device seconds of what runs and of what is more urgent, divided among the workers that take from the job's lane. Jobs
that run together share the device, so one that runs is done when everything as short as it is done. An expectation, not
a promise: batches make it shorter, and more urgent jobs that come later make it longer.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from jobs.job import Job, JobState
from jobs.queue import JobQueue
from jobs.records import Backlog, RunningJob, WaitingJob, WorkerInfo
from jobs.request import JobRequest, Priority
from service.costs import CostBook

LOOK_SECONDS = 1.0
"""How long a look at the queue stands, at least: it reads every job that waits."""
SHARE = 20
"""A look stands for at least so many times as long as it took: the queue has other things to do."""


@dataclass(frozen=True)
class Outlook:
    """What can be said of a job that is not over: jobs ahead while it waits, and seconds until it is done."""

    position: int | None = None
    eta_seconds: float | None = None


@dataclass
class Forecast:
    """Looks at the queue now and then, learns from what has finished, and tells how long things will take.

    In the backlog that it keeps, a running job's estimate is of what is left of it.
    """

    queue: JobQueue
    costs: CostBook
    workers: Callable[[], Awaitable[Sequence[WorkerInfo]]]
    ageing_seconds: float
    _backlog: Backlog = field(default_factory=Backlog)
    _fresh_until: float = float("-inf")
    _place: str = "0"

    async def refresh(self) -> None:
        """Look again, unless the last look still stands. One looks; others go by the last look meanwhile."""
        began = time.monotonic()
        if began < self._fresh_until:
            return
        self._fresh_until = began + 60
        try:
            self._place, finished = await self.queue.finished(self._place)
            for job in finished:
                if job.result is not None:
                    self.costs.observe(job.request, job.result.costs)
            self._backlog = await self._estimated(await self.queue.backlog())
        finally:
            now = time.monotonic()
            self._fresh_until = now + max(LOOK_SECONDS, SHARE * (now - began))

    async def _estimated(self, backlog: Backlog) -> Backlog:
        """The backlog, with what is left of running jobs, and estimates of what was unknown when it was submitted."""
        asked = [job.id for job in backlog.running] + [job.id for job in backlog.waiting if job.estimate is None]
        requests = {job.id: job.request for job in await self.queue.records(asked)} if asked else {}

        def known(job_id: str, left: float, told: float | None) -> float | None:
            found = self.costs.estimate(requests[job_id], left) if job_id in requests else None
            return (None if told is None else told * left) if found is None else found

        running = (RunningJob(job.id, job.lane, known(job.id, job.left, job.estimate), 1) for job in backlog.running)
        waiting = (WaitingJob(job.id, job.lane, known(job.id, 1, job.estimate), job.due) for job in backlog.waiting)
        return Backlog(tuple(running), tuple(waiting))

    async def of(self, job: Job) -> Outlook:
        """A job's place and time."""
        if job.state.final:
            return Outlook()
        await self.refresh()
        lanes, workers = await self._pool(job.request.lane)
        if job.state is JobState.RUNNING:
            return Outlook(None, self._rest_of(job, lanes, workers))
        own = self.costs.estimate(job.request)
        position = await self.queue.position(job, lanes)
        ahead = self._ahead(lanes, self._due(job.request, job.created_at), job.id)
        return Outlook(position, None if own is None or ahead is None else ahead / workers + own)

    def _rest_of(self, job: Job, lanes: frozenset[str], workers: int) -> float | None:
        left = self.costs.estimate(job.request, 1 - job.step / max(1, job.total_steps))
        if left is None:
            return None
        others = [other for other in self._backlog.running if other.lane in lanes and other.id != job.id]
        shared = [left if other.estimate is None else min(left, other.estimate) for other in others]
        return max(left, (left + sum(shared)) / workers)

    def _ahead(self, lanes: frozenset[str], due: float, job_id: str = "") -> float | None:
        """Device seconds that come before a job that is due then; None where part of it is unknown."""
        running = [job for job in self._backlog.running if job.lane in lanes and job.id != job_id]
        waiting = [job for job in self._backlog.waiting if job.lane in lanes and job.due < due and job.id != job_id]
        seconds = [job.estimate for job in running] + [job.estimate for job in waiting]
        known = [each for each in seconds if each is not None]
        return sum(known) if len(known) == len(running) + len(waiting) else None

    async def _pool(self, lane: str) -> tuple[frozenset[str], int]:
        """(lanes, workers): who takes from this lane, and from which others they take too."""
        pool = [worker for worker in await self.workers() if lane in worker.lanes and worker.state != "draining"]
        return frozenset({lane}.union(*(worker.lanes for worker in pool))), max(1, len(pool))

    def _due(self, request: JobRequest, created_at: float) -> float:
        return created_at + (1 + list(Priority).index(request.priority)) * self.ageing_seconds

    async def wait(self, request: JobRequest) -> float | None:
        """Seconds that a request would wait if it came now; None where nothing can be said."""
        await self.refresh()
        lanes, workers = await self._pool(request.lane)
        ahead = self._ahead(lanes, self._due(request, time.time()))
        return None if ahead is None else ahead / workers

    async def room_in(self, lane: str) -> float | None:
        """Seconds until the first of the running jobs is done, and a place in the queue so free."""
        await self.refresh()
        lanes, workers = await self._pool(lane)
        running = [job for job in self._backlog.running if job.lane in lanes]
        left = [job.estimate for job in running if job.estimate is not None]
        return min(left) * max(1, len(running) / workers) if running and len(left) == len(running) else None
