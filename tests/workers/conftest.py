"""What tests of the supervisor share: a real Redis, and a supervisor on it that works beside the test."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jobs.files import ResultStore
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer, connect, resolve
from jobs.settings import Settings
from tests.workers.bench import FAKE, Bench, BenchOf
from workers.metrics import Metrics
from workers.settings import WorkerSettings
from workers.supervisor import Supervisor


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for all tests of this room; each takes a namespace of its own."""
    settings = Settings(data=tmp_path_factory.mktemp("redis"))
    server = RedisServer(settings)
    server.start_now()
    yield resolve(settings)
    server.stop_now()


@pytest.fixture
def bench_of(redis_url: str, tmp_path: Path) -> BenchOf:
    """Makes an async context: a bench with the given settings, whose supervisor is drained at the end."""

    @asynccontextmanager
    async def make(command: tuple[str, ...] = FAKE, url: str = redis_url, **bounds: object) -> AsyncIterator[Bench]:
        settings = WorkerSettings.model_validate(
            {"data": tmp_path, "redis_url": url, "namespace": secrets.token_hex(4), "lease_seconds": 2} | bounds
        )
        redis = connect(url)
        queue, metrics = JobQueue(redis, settings, settings.lanes), Metrics()
        store = ResultStore(settings.results_dir, settings.result_ttl_seconds)
        supervisor = Supervisor(queue, store, settings, metrics, command)
        working = asyncio.create_task(supervisor.run())
        try:
            yield Bench(queue, supervisor, metrics, settings, url, working)
        finally:
            supervisor.drain()
            supervisor.drain()
            await working
            await redis.aclose()

    return make
