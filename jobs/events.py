"""What happened to a job, as a log that can be read from any point and followed. Knows events, never who reads them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from redis.asyncio import Redis

from jobs.errors import InvalidRequest, NotFound, Unavailable
from jobs.keys import Keys
from jobs.link import Link
from jobs.settings import Settings

EventType = Literal["queued", "started", "progress", "preview", "requeued", "succeeded", "failed", "canceled"]
TERMINAL: frozenset[EventType] = frozenset({"succeeded", "failed", "canceled"})

_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_BLOCK_MS = 2000
_SAFETY_SECONDS = 5.0
_PAUSE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job. `id` is its place in the log and the SSE id.

    `data` by type: `started` {worker, delivery}; `progress` {step, total}; `preview` {index, mime, b64};
    `requeued` {reason, suspect, deliveries}; `succeeded` a JobResult; `failed` a Failure; else empty.
    """

    id: str
    type: EventType
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """Whether no event can follow."""
        return self.type in TERMINAL


def parse_event_id(text: str) -> str:
    """A place in a log as a client sends it (`Last-Event-ID`); raises `InvalidRequest` when it is none."""
    match = _ID.fullmatch(text)
    if match is None or any(part and int(part) >= 2**63 for part in match.groups()):
        raise InvalidRequest("Last-Event-ID must be an event's id, like 1763690000000-0", param="Last-Event-ID")
    return text


def _place(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _events(entries: list[Any] | None) -> list[Event]:
    return [Event(entry_id, fields["t"], json.loads(fields["d"])) for entry_id, fields in entries or [] if fields]


class EventLog:
    """Reads the events of jobs. One instance per process: all its followers share one blocking connection.

    Use `close()` (or `async with`) when done; following again after that starts afresh.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._keys = Keys(settings.namespace)
        self._link = Link(redis, self._keys, settings)
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventLog:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop watching. Followers still at work then see events within seconds, not at once."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def read(self, job_id: str, after: str = "0", block_ms: int | None = None) -> list[Event]:
        """The events after one's id, oldest first; waits up to `block_ms` (at most 2000) for the first when given.

        Empty when there are none yet, and when the log has ended. Raises `InvalidRequest` for a malformed id.
        """
        after = parse_event_id(after)
        events = await self._after(job_id, after)
        if events or not block_ms:
            return events
        wake = self._watch(job_id)
        try:
            events = await self._after(job_id, after)
            if not events and await _rings(wake, min(block_ms, _BLOCK_MS) / 1000):
                events = await self._after(job_id, after)
            return events
        finally:
            self._unwatch(job_id, wake)

    async def follow(self, job_id: str, after: str = "0") -> AsyncIterator[Event]:
        """Every event after one's id, as it happens; ends after the terminal event, at once if that is behind us.

        Raises `NotFound` when the job has no log (it never existed, or its log has expired) and `Unavailable` when
        Redis stays away longer than the connection's retries.
        """
        after = parse_event_id(after)
        wake = self._watch(job_id)
        try:
            while True:
                wake.clear()
                events = await self._after(job_id, after)
                for event in events:
                    yield event
                    after = event.id
                    if event.final:
                        return
                if not events:
                    if await self._ended(job_id, after):
                        return
                    await _rings(wake, _SAFETY_SECONDS)
        finally:
            self._unwatch(job_id, wake)

    async def _after(self, job_id: str, after: str) -> list[Event]:
        return _events(await self._link.call("XRANGE", self._keys.events(job_id), f"({after}", "+"))

    async def _ended(self, job_id: str, after: str) -> bool:
        """Whether the terminal event lies at or before a place; one that came just now has still to be read."""
        last = _events(await self._link.call("XREVRANGE", self._keys.events(job_id), "+", "-", "COUNT", 1))
        if not last:
            raise NotFound(f"job {job_id} has no events: it does not exist, or they have expired")
        return last[0].final and _place(last[0].id) <= _place(after)

    def _watch(self, job_id: str) -> asyncio.Event:
        wake = asyncio.Event()
        self._followers.setdefault(job_id, set()).add(wake)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._dispatch(), name="halftone-events")
        return wake

    def _unwatch(self, job_id: str, wake: asyncio.Event) -> None:
        followers = self._followers[job_id]
        followers.discard(wake)
        if not followers:
            del self._followers[job_id]

    async def _dispatch(self) -> None:
        """Wake the followers of every job that changes; all of them once the starting place is known.

        A change between a follower's look and that place would else be heard of only by its safety look.
        """
        last = ""
        while True:
            try:
                if not last:
                    newest = await self._link.call("XREVRANGE", self._keys.changed, "+", "-", "COUNT", 1)
                    last = cast("str", newest[0][0]) if newest else "0-0"
                    for wake in [wake for wakes in self._followers.values() for wake in wakes]:
                        wake.set()
                reply = await self._link.call(
                    "XREAD", "COUNT", 1000, "BLOCK", _BLOCK_MS, "STREAMS", self._keys.changed, last
                )
            except Unavailable:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            for entry_id, fields in cast("list[Any]", reply[0][1]) if reply else []:
                last = entry_id
                for wake in self._followers.get(fields["job"], ()):
                    wake.set()


async def _rings(wake: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        return False
    return True
