"""The device child as a process: start it, notice its end, say whose fault that was.

Knows processes, signals and the kernel's out-of-memory counters; knows no jobs and no Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from workers.channel import SupervisorEnd

DEVICE_COMMAND = (sys.executable, "-m", "workers.device")
OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that come from people and their tools; a program at fault dies of others."""


class Cause(StrEnum):
    """Why a child is gone."""

    STOPPED = "stopped"  # we asked it to exit
    OUTSIDE = "outside"  # somebody killed it: an operator, a test, the machine's shutdown
    CRASH = "crash"  # its own fault: a signal from inside, an exit nobody asked for
    OUT_OF_MEMORY = "out_of_memory"  # the kernel killed it for its memory
    HANG = "hang"  # we killed it because it did not answer
    START = "start"  # it never became ready


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a child: the cause, and how to tell it to a person."""

    cause: Cause
    detail: str


class OomCounter:
    """How many processes the kernel killed for memory, in our control group where there is one."""

    def __init__(self, sources: Sequence[Path] | None = None) -> None:
        found = [path for path in (_oom_sources() if sources is None else sources) if path.is_file()]
        self._source = found[0] if found else None

    def read(self) -> int:
        """The count so far; 0 where the kernel tells nothing."""
        if self._source is None:
            return 0
        for line in self._source.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0


def _oom_sources() -> list[Path]:
    """Where the counter may be, best first: control groups version 2, version 1, the whole machine."""
    root = Path("/sys/fs/cgroup")
    sources = []
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            # inside a container the path is the host's and our group is mounted at the root
            sources += [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            sources += [root / "memory" / path.lstrip("/") / "memory.oom_control", root / "memory/memory.oom_control"]
    return [*sources, Path("/proc/vmstat")]


def classify(returncode: int, *, asked: Death | None, oom_kills: int) -> Death:
    """Whose fault a child's end was.

    Args:
        returncode: as of subprocess, negative for a signal.
        asked: what we had ended it for, if we had.
        oom_kills: kills for memory since the child's start.
    """
    if asked is not None:
        return asked
    if returncode >= 0:
        return Death(Cause.CRASH, f"the device process ended by itself with exit status {returncode}")
    name = signal.Signals(-returncode).name
    if returncode == -signal.SIGKILL and oom_kills > 0:
        return Death(Cause.OUT_OF_MEMORY, "the system ran out of memory and killed the device process")
    if -returncode in OUTSIDE:
        return Death(Cause.OUTSIDE, f"the device process was killed from outside by {name}")
    return Death(Cause.CRASH, f"the device process died of {name}")


class Child:
    """One running device process and the channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: SupervisorEnd, oom: OomCounter) -> None:
        self._process = process
        self._oom = oom
        self._oom_before = oom.read()
        self._asked: Death | None = None
        self.channel = channel

    @classmethod
    async def start(cls, command: Sequence[str] = DEVICE_COMMAND, oom: OomCounter | None = None) -> Child:
        """Start `command --fd N`, with standard error shared and a process group of its own.

        A terminal's Ctrl-C must reach the supervisor only, which then drains.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--fd",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        return cls(process, await SupervisorEnd.open(ours), oom or OomCounter())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def frozen(self) -> bool:
        """Whether somebody stopped it by SIGSTOP: no fault of its jobs."""
        stat = Path(f"/proc/{self.pid}/stat")
        try:
            return stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] in {"T", "t"}
        except (FileNotFoundError, ProcessLookupError):
            return False

    def end(self, why: Death) -> None:
        """Kill it at once. The first reason given is the one that counts."""
        self._asked = self._asked or why
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def stopping(self) -> None:
        """Note that its exit is what we want."""
        self._asked = self._asked or Death(Cause.STOPPED, "the worker stops")

    async def wait(self) -> Death:
        """Wait until it is gone, by whatever cause, and free what it held."""
        returncode = await self._process.wait()
        self.channel.close()
        return classify(returncode, asked=self._asked, oom_kills=self._oom.read() - self._oom_before)
