"""`halftone serve`: Redis if need be, the gateway and one worker as processes, started and stopped in order.

Knows how they are started and that /readyz tells when they are up; nothing of requests, jobs or models.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from halftone.banner import banner
from halftone.children import Child, GivenUp, Log
from jobs.errors import Unavailable
from jobs.redis_server import RedisServer
from service.settings import Settings as GatewaySettings
from workers.settings import WorkerSettings

WORKER_DRAIN_SECONDS = 20
GATEWAY_DRAIN_SECONDS = 5
"""Shorter than when each runs alone: a person waits for Ctrl-C to end. HALFTONE_DRAIN_SECONDS overrides both."""

KILL_AFTER_SECONDS = 10.0
"""From the end of a child's own drain to SIGKILL."""

START_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """What `halftone serve` was asked for; what is None is left to the environment and its defaults."""

    host: str | None = None
    port: int | None = None
    data: Path | None = None
    redis_url: str | None = None
    models: tuple[Path, ...] = ()

    def variables(self) -> dict[str, str]:
        """The plan as HALFTONE_* variables."""
        given = {
            "HALFTONE_HOST": self.host,
            "HALFTONE_PORT": self.port,
            "HALFTONE_DATA": self.data.expanduser().absolute() if self.data else None,
            "HALFTONE_REDIS_URL": self.redis_url,
            "HALFTONE_MODELS": os.pathsep.join(str(path.expanduser().absolute()) for path in self.models) or None,
        }
        return {name: str(value) for name, value in given.items() if value is not None}


class Stop:
    """What signals ask for: `asked` once one came, `at_once` after a second Ctrl-C."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self._first: float | None = None

    def listen(self) -> None:
        """Takes SIGTERM and SIGINT of this process from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif number == signal.SIGINT and now - self._first > 1:  # sooner: the same Ctrl-C through make and the terminal
            self.at_once.set()
        self.asked.set()


def serve(plan: Plan) -> int:
    """Runs everything until SIGTERM or Ctrl-C. The exit status: 0 when asked to stop, 1 when something gave up.

    Raises:
        BadSettings, Unavailable: a setting is wrong, or the port is taken.
    """
    os.environ.update(plan.variables())
    if GatewaySettings.load().port == 0:
        os.environ["HALFTONE_PORT"] = str(free_port(GatewaySettings.load().host))
    gateway, worker = GatewaySettings.load(), WorkerSettings.load()
    if not is_free(gateway.host, gateway.port):
        raise Unavailable(
            f"Port {gateway.port} of {gateway.host} is taken; choose another: --port, or make serve PORT="
        )
    return asyncio.run(_serve(gateway, worker))


async def _serve(gateway: GatewaySettings, worker: WorkerSettings) -> int:
    stop, log = Stop(), Log()
    stop.listen()
    redis = RedisServer(gateway)
    try:
        await redis.start()
        return await Household(gateway, worker, redis, stop, log).run()
    finally:
        await redis.stop()


class Household:
    """The gateway and the worker, from start to stop."""

    def __init__(
        self, gateway: GatewaySettings, worker: WorkerSettings, redis: RedisServer, stop: Stop, log: Log
    ) -> None:
        self._settings = gateway
        self._redis = redis
        self._stop = stop
        self._log = log
        self._ready = asyncio.Event()
        metrics_port = worker.metrics_port
        if "HALFTONE_METRICS_PORT" not in os.environ and not is_free(worker.metrics_host, metrics_port):
            metrics_port = free_port(worker.metrics_host)
        self.metrics_url = f"http://{worker.metrics_host}:{metrics_port}/metrics"
        own = {"HALFTONE_DRAIN_SECONDS": str(WORKER_DRAIN_SECONDS), "HALFTONE_METRICS_PORT": str(metrics_port)}
        self.worker = self._child("worker", "workers", own, worker.drain_seconds)
        own = {"HALFTONE_DRAIN_SECONDS": str(GATEWAY_DRAIN_SECONDS)}
        self.gateway = self._child("gateway", "service", own, gateway.drain_seconds + gateway.drain_notice_seconds)

    def _child(self, name: str, module: str, own: Mapping[str, str], drain_seconds: float) -> Child:
        """A child with variables of its own where the operator set none."""
        environment = {"PYTHONUNBUFFERED": "1", **own, **os.environ}
        drain = drain_seconds if "HALFTONE_DRAIN_SECONDS" in os.environ else float(own["HALFTONE_DRAIN_SECONDS"])
        return Child(name, (sys.executable, "-m", module), environment, drain + KILL_AFTER_SECONDS, self._log)

    async def run(self) -> int:
        """Keeps both running until asked to stop or one is given up; then stops them. The exit status."""
        keeping = [asyncio.create_task(child.keep(self._ready)) for child in (self.gateway, self.worker)]
        keeping.append(asyncio.create_task(self._watch_redis()))
        greeting = asyncio.create_task(self._greet())
        asked = asyncio.create_task(self._stop.asked.wait())
        done, _ = await asyncio.wait([*keeping, greeting, asked], return_when=asyncio.FIRST_COMPLETED)
        if greeting in done and greeting.exception() is None:
            done, _ = await asyncio.wait([*keeping, asked], return_when=asyncio.FIRST_COMPLETED)
        fault = next((task.exception() for task in done if task.exception() is not None), None)
        await self._end(fault)
        for task in (greeting, asked, *keeping):
            task.cancel()
        await asyncio.gather(greeting, asked, *keeping, return_exceptions=True)
        return 1 if fault else 0

    async def _watch_redis(self) -> None:
        """Raises GivenUp once the embedded Redis, which restarts by itself, is given up."""
        while self._redis.failure is None:  # noqa: ASYNC110  # set by the thread that looks after it
            await asyncio.sleep(0.5)
        raise GivenUp(f"the embedded Redis: {self._redis.failure}")

    async def _greet(self) -> None:
        """Waits until the service is ready, then says how to use it."""
        started = time.monotonic()
        url = base_url(self._settings.host, self._settings.port)
        async with httpx.AsyncClient(base_url=url, timeout=5) as http:
            while not await is_ready(http):
                if time.monotonic() - started > START_SECONDS:
                    raise GivenUp(f"the service is not ready after {START_SECONDS:g} s")
                await asyncio.sleep(0.1)
        self._ready.set()
        seconds, needs_key = time.monotonic() - started, bool(self._settings.api_key_hashes)
        for line in await banner(url, self.metrics_url, needs_key, seconds):
            self._log.write("serve", line)

    async def _end(self, fault: BaseException | None) -> None:
        """Stops the worker, so that running jobs finish or go back to the queue, then the gateway."""
        why = f"giving up: {fault}" if fault else "stopping; running jobs finish or go back to the queue"
        self._log.write("serve", why)
        hurrying = asyncio.create_task(self._hurry())
        try:
            await self.worker.stop()
            await self.gateway.stop()
        finally:
            hurrying.cancel()
        self._log.write("serve", "stopped")

    async def _hurry(self) -> None:
        """A second Ctrl-C ends both at once; their jobs go back to the queue when the leases end."""
        await self._stop.at_once.wait()
        self._log.write("serve", "stopping at once")
        self.worker.kill()
        self.gateway.kill()


async def is_ready(http: httpx.AsyncClient) -> bool:
    """Whether the gateway answers that it would take requests."""
    with suppress(httpx.TransportError):  # not listening yet
        return (await http.get("/readyz")).status_code == httpx.codes.OK
    return False


def base_url(host: str, port: int) -> str:
    """Where this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port that nobody listens on at `host`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
