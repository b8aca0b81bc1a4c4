"""What all routes share, in one object made at start: settings, queue, events, files, models. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from redis.asyncio import Redis

from jobs.catalog import Catalog
from jobs.events import EventLog
from jobs.files import ResultStore
from jobs.queue import JobQueue
from service.admission import Admission
from service.auth import Keys
from service.forecast import Forecast
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger("halftone.service")

_NOBODY = "0" * 32
"""The id of no job."""


@dataclass(eq=False)
class Gateway:
    """The running gateway. `open_requests` and `streams` change while it runs; the rest is fixed at start.

    `closing` is done once no new work is taken, `last_call` once open requests must be answered as things stand.
    """

    settings: Settings
    redis: Redis
    queue: JobQueue
    events: EventLog
    store: ResultStore
    catalog: Catalog
    admission: Admission
    forecast: Forecast
    keys: Keys
    metrics: Metrics
    closing: asyncio.Future[None]
    last_call: asyncio.Future[None]
    open_requests: int = 0
    streams: Counter[str] = field(default_factory=Counter)
    _errands: set[asyncio.Task[Any]] = field(default_factory=set)

    async def warm_up(self) -> None:
        """Open what the first request would wait for: the connection on which events arrive."""
        await self.events.read(_NOBODY, block_ms=1)

    @property
    def draining(self) -> bool:
        """Whether the gateway is shutting down: it takes no new work and finishes what is open."""
        return self.closing.done()

    def drain(self, last_call_in: float) -> None:
        """Begin to shut down; `last_call` comes so many seconds later. Once is enough, twice does no harm."""
        if not self.closing.done():
            self.closing.set_result(None)
            asyncio.get_running_loop().call_later(last_call_in, self._call_last)

    def _call_last(self) -> None:
        if not self.last_call.done():
            self.last_call.set_result(None)

    def errand(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        """Run something that outlives its request, like the cancel after a client has gone; a fault is logged."""
        task = asyncio.create_task(work, name=what)
        self._errands.add(task)
        task.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[Any]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("%s failed: %s", task.get_name(), task.exception())

    async def close(self) -> None:
        """Finish errands, then leave Redis."""
        if self._errands:
            await asyncio.wait(self._errands, timeout=5)
        await self.events.close()
        await self.redis.aclose()

    def base_url(self, request: Request) -> str:
        """The address that links in answers start with, without a slash at its end."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def owner_of(request: Request) -> str:
    """Whose request this is; raises Unauthorized. A dependency of every route under /v1."""
    return gateway_of(request).keys.owner(request.headers.get("authorization"))
