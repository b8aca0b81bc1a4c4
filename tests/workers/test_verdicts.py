"""Comparisons on their way to Redis: one that cannot be recorded is counted and stops neither others nor the worker."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from jobs.guard_record import Comparison
from jobs.keys import Keys
from jobs.queue import JobQueue
from jobs.settings import Settings
from workers.metrics import Metrics
from workers.verdicts import Verdicts

pytestmark = pytest.mark.anyio


def seen(profile: str) -> Comparison:
    return Comparison(
        id="job", model="m", profile=profile, artifact="one", width=64, height=64, num_inference_steps=3,
        guidance_scale=3.0, psnr_db=50.0, latent_error=0.01, call_errors=(0.01,), bets=None, elsewhere=False, seconds=1,
    )  # fmt: skip


async def test_a_record_that_cannot_be_read_is_counted_and_others_are_recorded(
    redis: Redis, settings: Settings
) -> None:
    guard, metrics = JobQueue(redis, settings).guard, Metrics()
    await redis.hset(Keys(settings.namespace).guard, "m/other-version", '{"version": 2}')
    verdicts = Verdicts(guard, metrics)
    running = asyncio.create_task(verdicts.run())
    verdicts.heard(seen("other-version"))
    verdicts.heard(seen("w8a8"))
    labels = {"model": "m", "profile": "w8a8", "verdict": "healthy"}
    for _ in range(500):
        if running.done() or metrics.registry.get_sample_value("halftone_quality_comparisons_total", labels):
            break
        await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    labels = {"model": "m", "profile": "other-version", "reason": "unrecorded"}
    assert metrics.registry.get_sample_value("halftone_guard_skipped_total", labels) == 1
    assert await redis.hexists(Keys(settings.namespace).guard, "m/w8a8")
