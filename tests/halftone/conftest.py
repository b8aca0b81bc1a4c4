"""What tests of the face share: the whole service as `halftone serve` starts it, on the benches' model `null`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """A `halftone serve` at work: its address, process and log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    data: Path

    def lines(self) -> str:
        """What it logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until_logged(self, text: str, times: int = 1, seconds: float = 20) -> None:
        """Waits until it logged `text` so many times."""
        deadline = time.monotonic() + seconds
        while self.lines().count(text) < times:
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)

    def until_ready(self, seconds: float = 60) -> None:
        """Waits for /readyz."""
        deadline = time.monotonic() + seconds
        while not is_ready(self.url):
            assert self.process.poll() is None and time.monotonic() < deadline, self.lines()
            time.sleep(0.05)

    def processes(self) -> list[tuple[int, str]]:
        """(process id, command line) of everything that mentions its data folder or is below it."""
        return [(pid, line) for pid, parent, line in all_processes() if self.process.pid in ancestry(pid)]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def all_processes() -> Iterator[tuple[int, int, str]]:
    """(process id, parent, command line) of everything that runs."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(entry.name), parent, line


def ancestry(pid: int) -> list[int]:
    """A process and those above it."""
    parents = {own: parent for own, parent, _ in all_processes()}
    line = [pid]
    while line[-1] in parents and parents[line[-1]] > 1:
        line.append(parents[line[-1]])
    return line


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**changes: str) -> dict[str, str]:
    """The environment of a service that has the benches' model only."""
    own = {
        "HALFTONE_NULL_MODEL": "1",
        "HALFTONE_DEFAULT_MODEL": "null",
        "HALFTONE_DISK_FLOOR_BYTES": "0",
        "PYTHONPATH": str(ROOT),
    }
    kept = {
        name: value for name, value in os.environ.items() if name != "REDIS_URL" and not name.startswith("HALFTONE_")
    }
    return kept | own | changes


@contextmanager
def run_serve(folder: Path, *options: str, **variables: str) -> Iterator[Running]:
    """`halftone serve` in a process group of its own, as make would start it; killed at the end if still there."""
    port, log, data = free_port(), folder / "serve.log", folder / "data"
    command = [sys.executable, "-m", "halftone", "serve", "--port", str(port), "--data", str(data), *options]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environment(**variables), stdout=sink, stderr=sink, cwd=folder, start_new_session=True
        )
    running = Running(f"http://127.0.0.1:{port}", process, log, data)
    try:
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service for all tests that leave it as it was."""
    with run_serve(tmp_path_factory.mktemp("serve")) as running:
        running.until_ready()
        yield running


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`run_serve`, for tests that need a service of their own."""
    return run_serve


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A current folder and an environment in which nothing of the developer's is set."""
    for name in list(os.environ):
        if name.startswith("HALFTONE_") or name == "REDIS_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
