"""Server-sent events: their form, their pings, their end. Knows what an event is, not what it means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import QueueFull
from jobs.events import Event
from service.context import Gateway
from service.waiting import every_event

PING = b": ping\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class TooManyStreams(QueueFull):
    """A key has as many event streams open as it may."""

    code = "too_many_streams"


def frame(kind: str, data: Any, event_id: str | None = None) -> bytes:
    """One event on the wire."""
    head = f"id: {event_id}\n" if event_id is not None else ""
    body = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return f"{head}event: {kind}\ndata: {body}\n\n".encode("ascii")


class EventStream(StreamingResponse):
    """An answer that is a stream; its generator is closed when the client goes, whatever it was doing."""

    def __init__(self, gateway: Gateway, owner: str, frames: AsyncGenerator[bytes, None]) -> None:
        """Raises TooManyStreams when the owner has as many open as it may."""
        limit = gateway.settings.event_streams_per_key
        if gateway.streams[owner] >= limit:
            raise TooManyStreams(f"{limit} event streams are open already; close one", retry_after=5)
        super().__init__(frames, media_type="text/event-stream", headers=_HEADERS)
        self._gateway, self._owner, self._frames = gateway, owner, frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, counted while it is open."""
        streams, shown = self._gateway.streams, self._gateway.metrics.event_streams
        streams[self._owner] += 1
        shown.inc()
        try:
            await super().__call__(scope, receive, send)
        finally:
            streams[self._owner] -= 1
            shown.dec()
            await self._frames.aclose()


async def follow(gateway: Gateway, job_id: str, after: str = "0") -> AsyncGenerator[Event | None, None]:
    """A job's events as they happen, and None after each silence long enough for a ping.

    Ends after the terminal event, when the stream has lived its time, or when the gateway drains: the client then asks
    again, with Last-Event-ID, and misses nothing.
    """
    settings, clock = gateway.settings, asyncio.get_running_loop().time
    deadline = clock() + settings.stream_seconds
    source = every_event(gateway, job_id, after)
    pending: asyncio.Task[Event | None] | None = None
    try:
        while clock() < deadline and not gateway.draining:
            pending = pending or asyncio.create_task(_next(source))
            ends: set[asyncio.Future[Any]] = {pending, gateway.closing}
            await asyncio.wait(ends, timeout=settings.ping_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not pending.done():
                yield None
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await source.aclose()


async def _next(source: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(source, None)


async def job_frames(gateway: Gateway, job_id: str, after: str) -> AsyncGenerator[bytes, None]:
    """A job's events on the wire; the SSE id is the event's place in the log."""
    async with aclosing(follow(gateway, job_id, after)) as events:
        async for event in events:
            yield PING if event is None else frame(event.type, event.data, event.id)
