"""A supervisor at work beside a test, and what tests look at."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobs.job import Job, JobState
from jobs.queue import JobQueue
from jobs.request import ImageRequest, VideoRequest
from workers.metrics import Metrics
from workers.settings import WorkerSettings
from workers.supervisor import Supervisor

FAKE = (sys.executable, "-m", "tests.workers.fake_child")
"""The command of a child that misbehaves on demand; run from the repository's root."""


async def eventually(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@dataclass
class Bench:
    """A supervisor at work and what a test needs to look at it."""

    queue: JobQueue
    supervisor: Supervisor
    metrics: Metrics
    settings: WorkerSettings
    url: str
    working: asyncio.Task[None]

    async def submit(self, prompt: str, *, frames: int | None = None) -> str:
        """A job for a picture, or with `frames` for a video."""
        fields: dict[str, Any] = {"model": "null", "profile": "float", "prompt": prompt, "width": 8, "height": 8}
        fields |= {"num_inference_steps": 4, "guidance_scale": 0, "seed": 1}
        request = ImageRequest(**fields) if frames is None else VideoRequest(**fields, num_frames=frames, fps=8)
        return (await self.queue.submit(request)).job.id

    async def until(self, job_id: str, wanted: Callable[[Job], bool], seconds: float = 20) -> Job:
        deadline = time.monotonic() + seconds
        while not wanted(job := await self.queue.get(job_id)):
            assert time.monotonic() < deadline, job
            await asyncio.sleep(0.005)
        return job

    async def final(self, job_id: str) -> Job:
        return await self.until(job_id, lambda job: job.state.final)

    async def running(self, *job_ids: str) -> None:
        """Wait until the child has begun: its `Started` arrives within a few ms of the queue's."""
        for job_id in job_ids:
            await self.until(job_id, lambda job: job.state is JobState.RUNNING)
        await asyncio.sleep(0.1)

    async def until_idle(self) -> None:
        async with asyncio.timeout(10):
            await self.supervisor._hands.empty.wait()

    @property
    def restarts(self) -> dict[str, float]:
        """Children replaced, by reason."""
        samples = next(iter(self.metrics.restarts.collect())).samples
        return {one.labels["reason"]: one.value for one in samples if one.name.endswith("_total")}

    @property
    def child_pid(self) -> int:
        child = self.supervisor._keeper._child
        assert child is not None
        return child.pid

    @property
    def files(self) -> list[Path]:
        return [path for path in self.settings.results_dir.rglob("*") if path.is_file()]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"halftone_{name}", labels) or 0.0


class BenchOf(Protocol):
    def __call__(
        self, command: tuple[str, ...] = ..., url: str = ..., **bounds: object
    ) -> AbstractAsyncContextManager[Bench]: ...
