"""Child processes of `halftone serve`: start, log, restart with backoff, stop. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jobs.errors import Unavailable

BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)
CRASHES, CRASH_WINDOW_SECONDS = 5, 60.0
"""A child that ends so often within so many seconds is given up."""


class GivenUp(Unavailable):
    """A child does not start, or keeps dying."""

    code = "given_up"


class Log:
    """Lines of several children on one stream, each with its name before it, in colour on a terminal."""

    COLOURS: Mapping[str, str] = {"gateway": "36", "worker": "35", "serve": "32"}

    def __init__(self) -> None:
        self._tint = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    def write(self, name: str, line: str) -> None:
        """One line, at once."""
        label = f"{name:<7} | "
        if self._tint:
            label = f"\x1b[{self.COLOURS.get(name, '0')}m{label}\x1b[0m"
        sys.stderr.write(f"{label}{line}\n")
        sys.stderr.flush()


@dataclass
class Child:
    """One process that should be running. It gets a session of its own: signals to our group reach only us.

    Attributes:
        name: in front of its log lines.
        command: program and arguments.
        environment: all of its variables.
        grace_seconds: from SIGTERM to SIGKILL.
        log: where its output goes.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    grace_seconds: float
    log: Log
    _process: asyncio.subprocess.Process | None = None
    _stopping: bool = False
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=CRASHES))

    @property
    def pid(self) -> int | None:
        """Its process id; None when it does not run."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def keep(self, was_ready: asyncio.Event) -> None:
        """Runs it, and again whenever it ends, until `stop`.

        Raises:
            GivenUp: it ended before `was_ready` was set, or CRASHES times within CRASH_WINDOW_SECONDS.
        """
        while True:
            status = await self._run_once()
            if self._is_stopping():
                return
            self._ends.append(time.monotonic())
            if not was_ready.is_set():
                raise GivenUp(f"the {self.name} {ended(status)} before it was ready; its lines above say why")
            if len(self._ends) == CRASHES and self._ends[-1] - self._ends[0] < CRASH_WINDOW_SECONDS:
                raise GivenUp(f"the {self.name} {ended(status)} for the {CRASHES}th time within a minute")
            delay = BACKOFF_SECONDS[min(self._recent_ends(), len(BACKOFF_SECONDS)) - 1]
            self.log.write("serve", f"the {self.name} {ended(status)}; starting it again in {delay} s")
            await asyncio.sleep(delay)
            if self._is_stopping():
                return

    async def stop(self) -> None:
        """Ends it and waits: SIGTERM, then SIGKILL to its whole session after `grace_seconds`."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self.grace_seconds):
                await process.wait()
        except TimeoutError:
            self.log.write("serve", f"the {self.name} did not stop within {self.grace_seconds:g} s; killing it")
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """SIGKILL to it and to everything in its session."""
        if self.pid is not None:
            for member in session_members(self.pid):
                with suppress(ProcessLookupError):  # it was faster
                    os.kill(member, signal.SIGKILL)

    async def _run_once(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            *tied_to_us(self.command),
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        if self._process.stdout is None:  # for mypy: PIPE always gives one
            raise GivenUp(f"the {self.name} has no output to read")
        copying = asyncio.create_task(self._copy(self._process.stdout))
        status = await self._process.wait()
        # A grandchild may hold the pipe for a moment longer; its lines are not worth waiting for.
        await asyncio.wait([copying], timeout=1.0)
        copying.cancel()
        return status

    async def _copy(self, stream: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.log.write(self.name, line.decode(errors="replace").rstrip("\r"))
        if rest:
            self.log.write(self.name, rest.decode(errors="replace"))

    def _is_stopping(self) -> bool:
        return self._stopping  # may change at every await

    def _recent_ends(self) -> int:
        now = time.monotonic()
        return sum(now - end < CRASH_WINDOW_SECONDS for end in self._ends)


def tied_to_us(command: Sequence[str]) -> list[str]:
    """The command, run so that even a `kill -9` of this process leaves no orphan."""
    script = files("jobs") / "die_with_parent.py"
    return [sys.executable, "-I", "-S", str(script), str(os.getpid()), *command]


def session_members(leader: int) -> Iterator[int]:
    """Process ids of the session that `leader` leads, itself last; only itself where there is no /proc."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = entry.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == leader and int(entry.parent.name) != leader:
                yield int(entry.parent.name)
    yield leader


def ended(status: int) -> str:
    """A process's end in words: exit code, or the signal's name."""
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
