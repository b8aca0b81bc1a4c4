"""How a job's pipeline meets the hub, the device's turns and the job's reporter; and what each stage took.

Must not know files, the channel, or how models are loaded.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from jobs.job import Costs
from pipelines.denoiser import DenoiserCall
from pipelines.media import MIME, encode_preview
from pipelines.session import Exclusive
from workers.hub import Hub, Served
from workers.residents import Lease
from workers.task import Task
from workers.turns import Turns

Stage = Literal["load", "text_encode", "denoise", "vae_decode", "encode", "store"]


class Reporter(Protocol):
    """What a job tells on its way."""

    def stepped(self, step: int, total: int) -> None:
        """`step` of `total` are done."""

    def previewed(self, index: int, mime: str, b64: str) -> None:
        """A preview picture."""

    def working(self) -> None:
        """Something is being done that is no step: decoding, encoding."""

    def stage_took(self, stage: Stage, seconds: float, served: Served) -> None:
        """A stage is over."""


@dataclass
class Stages:
    """Seconds by stage of one job, waiting for one's turn left out except in `denoise`, which is about company."""

    lease: Lease
    report: Reporter
    seconds: dict[Stage, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add("load", self.lease.load_seconds)

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        """Adds the block's duration to a stage and reports it."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Adds to a stage and reports it."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.report.stage_took(stage, seconds, self.lease.served)

    def costs(self, queue_seconds: float, denoiser_calls: int, peak_bytes: int) -> Costs:
        """What the job cost."""
        return Costs(
            queue_seconds=queue_seconds,
            load_seconds=self.seconds["load"],
            text_encode_seconds=self.seconds.get("text_encode", 0.0),
            denoise_seconds=self.seconds.get("denoise", 0.0),
            decode_seconds=self.seconds.get("vae_decode", 0.0),
            encode_seconds=self.seconds.get("encode", 0.0),
            denoiser_calls=denoiser_calls,
            peak_bytes=peak_bytes,
        )


WORKING_SECONDS = 1.0
"""Shortest time between two signs of life of a job that makes no steps."""


class JobSeams:
    """Answers a session's seams by the hub, for one job."""

    def __init__(self, task: Task, served: Served, hub: Hub, turns: Turns, stages: Stages, previews: int) -> None:
        self._task = task
        self._served = served
        self._hub = hub
        self._turns = turns
        self._stages = stages
        self._previews = previews
        self._sent = 0
        self._denoising_since = 0.0
        self._alive_at = time.monotonic()

    def denoise(self, call: DenoiserCall) -> Tensor:
        """Waits for the hub."""
        self._task.check()
        if not self._denoising_since:
            self._denoising_since = time.monotonic()
        # whoever waits behind others' heavy calls does not hang; the hub itself is watched for that
        return self._hub.run(self._task, self._served, call, self._say_alive)

    @contextmanager
    def alone(self, stage: Exclusive) -> Iterator[None]:
        """The device's turn, for a job that is still wanted. What others do in its breaths is not this stage's time."""
        self._task.check()
        with self._turns.take(self.alive) as turn:
            self._hub.leave(self._task)
            self._task.check()
            started = time.monotonic()
            try:
                yield
            finally:
                self._stages.add(stage, time.monotonic() - started - turn.lent_seconds)
                if stage == "text_encode":
                    self._hub.expect(self._task)

    def alive(self) -> None:
        """To be called in long work between steps: says now and then that it goes on, and ends it when canceled."""
        self._task.check()
        self._say_alive()

    def _say_alive(self) -> None:
        if time.monotonic() - self._alive_at >= WORKING_SECONDS:
            self._alive_at = time.monotonic()
            self._stages.report.working()

    def stepped(self, step: int, total: int, preview: Callable[[], Tensor]) -> None:
        """Reports the step; sends a preview where one is due; after the last step nobody waits for this job."""
        self._task.check()
        self._stages.report.stepped(step, total)
        if step >= total:
            self._hub.expect(self._task)  # to be decoded
            self._stages.add("denoise", time.monotonic() - self._denoising_since)
        elif step in preview_steps(self._previews, total):
            self._hub.leave(self._task)
            self._stages.report.previewed(
                self._sent, MIME["webp"], base64.b64encode(encode_preview(preview())).decode()
            )
            self._sent += 1


def preview_steps(previews: int, total: int) -> list[int]:
    """After which steps to send previews: evenly spread over 1 … total - 1, as many as there is room for."""
    return sorted({round(total * (i + 1) / (previews + 1)) for i in range(previews)} - {0, total})
