"""The device child as a process: how it starts, that it dies with its supervisor, and whose fault its end is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workers.bench import FAKE
from workers.child import Cause, Child, Death, OomCounter, classify
from workers.messages import FromChild, Ready, Stop


async def started() -> Child:
    child = await Child.start(FAKE)
    assert isinstance(await child.channel.receive(), Ready)
    return child


async def listen_to_end(child: Child) -> list[FromChild]:
    heard = []
    while (message := await child.channel.receive()) is not None:
        heard.append(message)
    return heard


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, Cause.OUTSIDE),
        (signal.SIGTERM, Cause.OUTSIDE),
        (signal.SIGSEGV, Cause.CRASH),
        (signal.SIGABRT, Cause.CRASH),
    ],
)
def test_a_signal_tells_whose_fault_it_was(number: signal.Signals, cause: Cause) -> None:
    async def story() -> Death:
        child = await started()
        os.kill(child.pid, number)
        await listen_to_end(child)
        return await child.wait()

    death = asyncio.run(story())
    assert death.cause is cause
    assert number.name in death.detail


def test_it_exits_when_told_to_and_that_is_no_fault() -> None:
    async def story() -> Death:
        child = await started()
        child.stopping()
        child.channel.send(Stop())
        await listen_to_end(child)
        return await child.wait()

    assert asyncio.run(story()).cause is Cause.STOPPED


def test_the_first_reason_for_killing_it_is_the_one_that_counts() -> None:
    async def story() -> Death:
        child = await started()
        child.end(Death(Cause.HANG, "first"))
        child.end(Death(Cause.CRASH, "second"))
        await listen_to_end(child)
        return await child.wait()

    assert asyncio.run(story()) == Death(Cause.HANG, "first")


def test_a_stopped_process_is_seen_as_frozen() -> None:
    async def story() -> tuple[bool, bool]:
        child = await started()
        before = child.frozen
        os.kill(child.pid, signal.SIGSTOP)
        await asyncio.sleep(0.05)
        during = child.frozen
        child.end(Death(Cause.STOPPED, "enough"))
        await child.wait()
        return before, during

    assert asyncio.run(story()) == (False, True)


def test_exits_that_nobody_asked_for_are_crashes() -> None:
    for status in (0, 1, 3, 137):
        death = classify(status, asked=None, oom_kills=5)
        assert death.cause is Cause.CRASH
        assert f"status {status}" in death.detail


def test_memory_is_blamed_only_when_the_kernel_counted_a_kill(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    counter = OomCounter([tmp_path / "absent", events])
    assert counter.read() == 2
    assert OomCounter([tmp_path / "absent"]).read() == 0
    assert classify(-signal.SIGKILL, asked=None, oom_kills=1).cause is Cause.OUT_OF_MEMORY
    assert classify(-signal.SIGKILL, asked=None, oom_kills=0).cause is Cause.OUTSIDE
    assert classify(-signal.SIGSEGV, asked=None, oom_kills=1).cause is Cause.CRASH
    assert OomCounter().read() >= 0


STARTER = """
import asyncio, sys
from workers.child import Child
async def main():
    child = await Child.start(sys.argv[1:])
    await child.channel.receive()
    print(child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child sees the end of the stream instead")
def test_it_dies_with_its_supervisor() -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", STARTER, *FAKE], stdout=subprocess.PIPE, encoding="utf-8")
    assert supervisor.stdout is not None
    with supervisor, supervisor.stdout:
        pid = int(supervisor.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        supervisor.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline, "the child outlived its supervisor"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
