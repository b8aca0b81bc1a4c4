"""Fixtures that several rooms share: one private Redis per session, settings on it, a queue, and requests to submit.

Asynchronous tests use anyio's pytest plugin (`pytestmark = pytest.mark.anyio`), which comes with httpx and starlette:
it also runs asynchronous fixtures, in the loop of the test. No other plugin is needed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from jobs.queue import JobQueue
from jobs.redis_server import RedisServer, connect, resolve
from jobs.request import ImageRequest, VideoRequest
from jobs.settings import Settings

if shutil.which("nvidia-smi") is None:  # GPU kernels run in Triton's interpreter; it asks once, when first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop that the product runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's own server, on a unix socket, up for a second: before that it ends no lease of less."""
    settings = Settings(data=tmp_path_factory.mktemp("redis"), redis_url=None)
    server = RedisServer(settings)
    server.start_now()
    with BlockingRedis.from_url(resolve(settings)) as client:
        while client.info("server")["uptime_in_seconds"] < 1:
            time.sleep(0.05)
    yield resolve(settings)
    server.stop_now()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings with a data folder and a namespace of the test's own, on an empty Redis."""
    with BlockingRedis.from_url(redis_url) as client:
        client.flushall()
    return Settings.model_validate(
        {"data": tmp_path / "data", "redis_url": redis_url, "namespace": f"t{secrets.token_hex(4)}"}
    )


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client as the product makes one."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def queue(redis: Redis, settings: Settings) -> JobQueue:
    """A queue without jobs."""
    return JobQueue(redis, settings)


@pytest.fixture
def image_request() -> Callable[..., ImageRequest]:
    """Makes small requests; keyword arguments change fields."""

    def make(**changes: Any) -> ImageRequest:
        fields = {
            "model": "null",
            "profile": "float",
            "prompt": "a red circle",
            "width": 64,
            "height": 64,
            "num_inference_steps": 4,
            "guidance_scale": 1.0,
            "seed": 1,
        }
        return ImageRequest.model_validate(fields | changes)

    return make


@pytest.fixture
def video_request() -> Callable[..., VideoRequest]:
    """The same for videos."""

    def make(**changes: Any) -> VideoRequest:
        fields = {
            "model": "null-video",
            "profile": "float",
            "prompt": "a red circle moves left",
            "width": 64,
            "height": 64,
            "num_frames": 5,
            "fps": 8,
            "num_inference_steps": 4,
            "guidance_scale": 1.0,
            "seed": 1,
        }
        return VideoRequest.model_validate(fields | changes)

    return make
