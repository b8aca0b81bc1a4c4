"""A whole Halftone of real processes that are killed and come back: Redis, gateway, supervisors and their children.

Knows processes and signals; what clients do with it is in load.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

from jobs.redis_server import RedisServer
from jobs.settings import Settings

LEASE_SECONDS = 1.5
FROZEN_SECONDS = 2.2 * LEASE_SECONDS

log = logging.getLogger(__name__)


class House:
    """One gateway, some supervisors, one Redis. `async with` starts and stops them."""

    def __init__(self, data: Path, supervisors: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.environment = {
            "HALFTONE_DATA": str(data),
            "HALFTONE_PORT": str(self.port),
            "HALFTONE_NULL_MODEL": "1",
            "HALFTONE_DEFAULT_MODEL": "null",
            "HALFTONE_LEASE_SECONDS": str(LEASE_SECONDS),
            "HALFTONE_SWEEP_SECONDS": "1",
            "HALFTONE_METRICS_PORT": "0",
            "HALFTONE_MAX_DELIVERIES": "1000",  # here deaths are the rule, and none is the job's fault
            "HALFTONE_MAX_QUEUED_PER_KEY": "1000",
            "HALFTONE_DISK_FLOOR_BYTES": "0",
            "HALFTONE_MAX_RUNNING": "4",
        }
        self.settings = Settings.model_validate(
            {"data": data, "redis_url": None, "lease_seconds": LEASE_SECONDS, "allow_null_model": True}
        )
        self.redis = RedisServer(self.settings)
        self.log_path = data / "processes.log"
        self._log = None
        self._commands = {"gateway": "service"} | {f"worker-{index}": "workers" for index in range(supervisors)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._frozen: set[int] = set()
        self.done: Counter[str] = Counter()

    async def __aenter__(self) -> House:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        await self.redis.start()
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        for name, process in reversed(self._processes.items()):
            process.terminate()
            status = await asyncio.to_thread(process.wait, 30)
            log.info("%s ended with status %d", name, status)
        await self.redis.stop()

    async def _keep(self) -> None:
        """Start what does not run, as any init would."""
        with self.log_path.open("ab") as output:
            while True:
                for name, module in self._commands.items():
                    process = self._processes.get(name)
                    if process is None or process.poll() is not None:
                        self._processes[name] = subprocess.Popen(  # noqa: ASYNC220  milliseconds
                            [sys.executable, "-m", module],
                            env=os.environ | self.environment,
                            stdout=output,
                            stderr=output,
                        )
                await asyncio.sleep(0.05)

    @property
    def workers(self) -> list[int]:
        """Process ids of the supervisors."""
        return [process.pid for name, process in self._processes.items() if name.startswith("worker")]

    def story(self) -> str:
        """What the processes logged last, without the gateway's list of requests."""
        lines = [
            line for line in self.log_path.read_text(encoding="utf-8").splitlines() if "halftone.access" not in line
        ]
        return "\n".join(lines[-200:])

    # ---- faults ----------------------------------------------------------------------------------------------------

    async def inflict(self, fault: str, chance: random.Random) -> None:
        """Do one of: child, supervisor, redis, gateway (each kill -9) and frozen (a supervisor, past its lease)."""
        supervisor = chance.choice([pid for pid in self.workers if pid not in self._frozen])
        if fault == "child":
            children = await self._until_some(supervisor)
            self._kill(children[0] if children else None, fault)
        elif fault == "supervisor":
            self._kill(supervisor, fault)
        elif fault == "gateway":
            self._kill(self._processes["gateway"].pid, fault)
        elif fault == "redis":
            self._kill(self.redis.process.pid if self.redis.process else None, fault)
        else:
            await self._freeze(supervisor)

    def _kill(self, pid: int | None, fault: str) -> None:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.done[fault] += 1

    async def _until_some(self, parent: int) -> list[int]:
        """The children of a process, once it has any."""
        for _ in range(200):
            if found := children_of(parent):
                return found
            await asyncio.sleep(0.02)
        return []

    async def _freeze(self, pid: int) -> None:
        self._frozen.add(pid)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(FROZEN_SECONDS)
        os.kill(pid, signal.SIGCONT)
        self._frozen.discard(pid)
        self.done["frozen"] += 1

    async def thawed(self) -> None:
        """Wait until somebody works."""
        while len(self._frozen) >= sum(  # noqa: ASYNC110
            name.startswith("worker") for name in self._processes
        ):
            await asyncio.sleep(0.05)


def children_of(parent: int) -> list[int]:
    """Process ids whose parent this is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found
