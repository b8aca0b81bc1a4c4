"""The one seam to Redis: runs the Lua scripts and translates its faults. Knows no job; decides nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, cast

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer

from jobs.errors import Unavailable
from jobs.keys import GROUP, LANES, RETURNED, Keys
from jobs.settings import Settings

_HEALS = (LostConnection, NoAnswer, BusyLoadingError, OutOfMemoryError, ReadOnlyError)
_REFUSAL = re.compile(r"(?:^|[ -])(?:MISCONF|OOM|READONLY|NOREPLICAS|MASTERDOWN|BUSY) ")
"""At the start of an error, or inside one: Redis 6.2 wraps what a script met."""

_RETRY_AFTER = 2.0
_PREVIEW_LOG_SECONDS = 3600
_DEAD_LETTER_SECONDS = 30 * 86_400


@contextmanager
def translated() -> Iterator[None]:
    """Turn faults that time can heal into `Unavailable`; other faults of Redis are ours and pass unchanged."""
    try:
        yield
    except _HEALS as error:
        raise Unavailable(f"the queue is away: {error}", retry_after=_RETRY_AFTER) from error
    except ResponseError as error:
        if _REFUSAL.search(str(error)):
            raise Unavailable(f"the queue refuses writes: {error}", retry_after=_RETRY_AFTER) from error
        raise


def _prelude(keys: Keys, settings: Settings) -> str:
    constants = {
        "AGEING": settings.ageing_seconds,
        "LEASE": settings.lease_seconds,
        "QUEUE_WAIT": settings.queue_wait_seconds,
        "MAX_QUEUE": settings.max_queue,
        "MAX_QUEUED_PER_OWNER": settings.max_queued_per_key,
        "MAX_SUSPECT_ATTEMPTS": settings.max_suspect_attempts,
        "MAX_DELIVERIES": settings.max_deliveries,
        "IDEMPOTENCY_TTL": settings.idempotency_seconds,
        "RESULT_TTL": settings.result_ttl_seconds,
        "RECORD_TTL": settings.record_ttl_seconds,
        "PREVIEW_LOG_TTL": min(_PREVIEW_LOG_SECONDS, settings.record_ttl_seconds),
        "DEAD_LETTER_TTL": _DEAD_LETTER_SECONDS,
    }
    lines = [f"local KEY = {keys.lua_table()}", f"local GROUP, RETURNED = '{GROUP}', '{RETURNED}'"]
    lines.append(f"local LANES = {{{', '.join(map(repr, LANES))}}}")
    lines += [f"local {name} = {value}" for name, value in constants.items()]
    return "\n".join(lines) + "\n"


async def _answer(work: Awaitable[Any]) -> Any:
    """Redis's answer. A cancel that comes just when redis-py has sent (by Python 3.11's `wait_for`) is lost there and
    raised here, after the answer."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        with translated():
            return await work
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


class Link:
    """Redis with our scripts on it. `redis` must decode replies (`jobs.redis_server.connect` makes one)."""

    def __init__(self, redis: Redis, keys: Keys, settings: Settings) -> None:
        self.redis = redis
        folder = files("jobs") / "lua"
        self._head = _prelude(keys, settings) + (folder / "common.lua").read_text(encoding="utf-8")
        self._folder = folder
        self._scripts: dict[str, AsyncScript] = {}

    def _script(self, name: str) -> AsyncScript:
        if name not in self._scripts:
            body = (self._folder / f"{name}.lua").read_text(encoding="utf-8")
            self._scripts[name] = self.redis.register_script(self._head + body)
        return self._scripts[name]

    async def run(self, name: str, *args: str | float) -> Any:
        """Run `jobs/lua/<name>.lua`: one decision, one round trip, safe to be sent twice."""
        return await _answer(cast("Awaitable[Any]", self._script(name)(args=list(args))))

    async def call(self, *command: str | float) -> Any:
        """Run one plain command that decides nothing."""
        return await _answer(self.redis.execute_command(*command))  # type: ignore[no-untyped-call]  # untyped in redis

    async def pipeline(self, *commands: tuple[str | float, ...]) -> list[Any]:
        """Run several plain commands in one round trip; their replies in order."""
        pipe = self.redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return cast("list[Any]", await _answer(pipe.execute()))
