"""Child processes of `halftone serve`: logs, restarts, giving up, stopping, and never an orphan. On real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halftone.children import Child, GivenUp, Log, ended, session_members

DEAF = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


class Lines(Log):
    """A log that remembers instead of printing."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def write(self, name: str, line: str) -> None:
        self.lines.append((name, line))


def child(code: str, log: Log, grace: float = 5.0) -> Child:
    return Child("worker", [sys.executable, "-c", code], dict(os.environ), grace, log)


def ready_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


async def until(condition: object) -> None:
    """Waits, at most ten seconds, until a function is true."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is nothing to be notified by
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_output_is_logged_line_by_line_with_its_name() -> None:
    log = Lines()

    async def run() -> None:
        kept = child("print('one'); print('two\\nthree', end='')", log)
        with pytest.raises(GivenUp, match="exit code 0 before it was ready"):
            await kept.keep(asyncio.Event())

    asyncio.run(run())
    assert log.lines == [("worker", "one"), ("worker", "two"), ("worker", "three")]


def test_a_dead_child_is_started_again() -> None:
    log = Lines()

    async def run() -> None:
        kept = child("import time; print('up', flush=True); time.sleep(60)", log)
        keeping = asyncio.create_task(kept.keep(ready_event()))
        await until(lambda: ("worker", "up") in log.lines)
        first = kept.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: log.lines.count(("worker", "up")) == 2)
        assert kept.pid not in {None, first}
        await kept.stop()
        await keeping

    asyncio.run(run())
    assert ("serve", "the worker was ended by SIGKILL; starting it again in 0.1 s") in log.lines


def test_a_child_that_keeps_dying_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halftone.children.BACKOFF_SECONDS", (0.0,))
    with pytest.raises(GivenUp, match="exit code 3 for the 5th time"):
        asyncio.run(child("raise SystemExit(3)", Lines()).keep(ready_event()))


def test_a_child_that_ignores_sigterm_is_killed_with_its_children() -> None:
    log = Lines()
    code = f"import subprocess,sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); {DEAF}"

    async def run() -> list[int]:
        kept = child(code, log, grace=0.2)
        keeping = asyncio.create_task(kept.keep(ready_event()))
        await until(lambda: ("worker", "deaf") in log.lines)
        assert kept.pid is not None
        members = list(session_members(kept.pid))
        await kept.stop()
        await keeping
        return members

    members = asyncio.run(run())
    assert len(members) == 2
    deadline = time.monotonic() + 5
    while any(map(alive, members)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, members))


def test_no_orphan_when_the_parent_is_killed(tmp_path: Path) -> None:
    code = """
import asyncio, os, sys
from halftone.children import Child, Log
kept = Child("worker", [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
             dict(os.environ), 5, Log())
asyncio.run(kept.keep(asyncio.Event()))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, encoding="utf-8")
    assert parent.stderr is not None
    with parent.stderr as log:
        pid = int(log.readline().rpartition("|")[2])
    assert alive(pid)
    parent.kill()
    parent.wait(10)
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def test_ends_are_told_in_words() -> None:
    assert ended(2) == "ended with exit code 2"
    assert ended(-9) == "was ended by SIGKILL"
    assert ended(-200) == "was ended by signal 200"
