"""How a process finds and reaches Redis: the address and an explicit retry policy. Knows no server process, no jobs."""

from __future__ import annotations

from pathlib import Path

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from jobs.errors import Unavailable
from jobs.settings import Settings

SOCKET_TIMEOUT = 5.0
"""Seconds without an answer after which a command is sent again; blocking reads must be shorter."""

_MAX_CONNECTIONS = 64
_HEALTH_CHECK_SECONDS = 15


def address_file(settings: Settings) -> Path:
    """Where the embedded server's address is written while it has one."""
    return settings.redis_dir / "address"


def resolve(settings: Settings) -> str:
    """The URL of the Redis to use: the operator's, else that of the embedded server of this data folder.

    Raises `Unavailable` when there is neither.
    """
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    try:
        return address_file(settings).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise Unavailable(
            f"no Redis: set REDIS_URL, or start one for {settings.data} with `halftone serve`", retry_after=2.0
        ) from None


def connect(url: str, *, retries: int = 10) -> Redis:
    """A client that survives restarts of the server; does not connect yet.

    A command that gets no answer is sent again up to `retries` times, 10 ms to 1 s apart. Measured on a dead socket:
    given up after 3.4 s with 10 (workers), 0.7 s with 6, 0.06 s with 3 (gateways, which rather answer 503; the embedded
    server is back in about 0.3 s). `redis.from_url` alone would not retry at all. All our writes may be sent twice.
    """
    pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=SOCKET_TIMEOUT,
        retry=Retry(ExponentialWithJitterBackoff(cap=1, base=0.01), retries),
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        health_check_interval=_HEALTH_CHECK_SECONDS,
        decode_responses=True,
        protocol=2,  # one shape of replies from every server
    )
    return Redis.from_pool(pool)
