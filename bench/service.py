"""A whole Halftone service for a bench: started as `halftone serve` in a folder of its own, stopped afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def service(prepare: Callable[[Path], object] | None = None, /, **settings: object) -> Iterator[int]:
    """A running service; yields its port. Keywords become HALFTONE_* variables; `prepare` gets its data folder before.

    Raises:
        RuntimeError: it was not ready within three minutes; the message ends with its log.
    """
    port = free_port()
    extra = {f"HALFTONE_{name.upper()}": str(value) for name, value in settings.items()}
    roomy = {"HALFTONE_MAX_QUEUED_PER_KEY": "10000", "HALFTONE_MAX_QUEUE": "10000", "HALFTONE_METRICS_PORT": "0"}
    with tempfile.TemporaryDirectory(prefix="halftone-bench-") as data:
        if prepare is not None:
            prepare(Path(data))
        log = Path(data) / "serve.log"
        command = [sys.executable, "-m", "halftone", "serve", "--port", str(port), "--data", data]
        with log.open("wb") as sink:
            process = subprocess.Popen(command, env={**os.environ, **roomy, **extra}, stdout=sink, stderr=sink)
        try:
            deadline = time.monotonic() + 180
            while not _ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"the service did not become ready; its log ends:\n{log.read_text(encoding='utf-8')[-2000:]}"
                    )
                time.sleep(0.2)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
