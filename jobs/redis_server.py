"""The embedded Redis: one owner per data folder starts, restarts and stops it. Knows nothing of jobs."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from jobs import redis_process
from jobs.connection import address_file, connect, resolve
from jobs.errors import Unavailable
from jobs.settings import Settings

__all__ = ["RedisServer", "connect", "resolve"]

MAX_SOCKET_PATH = 100
"""Bytes; the kernel's limit for a unix socket's path is 108."""

START_SECONDS = 60.0
MAX_MUTE_STARTS = 5
"""A server that answers before it ends is restarted for ever: giving up would lose what it holds."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_LOOK_SECONDS = 0.1

log = logging.getLogger(__name__)


class RedisServer:
    """The Redis of a data folder. Does nothing when the operator gave a `redis_url`.

    The first process to start one owns it; others find it running, use it, and take over should the owner die. A
    thread looks after it, because the server is tied to the life of the thread that started it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.redis_dir
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        """The server while this process owns it."""

    @property
    def failure(self) -> str | None:
        """Why the server was given up, if it was."""
        return self._failure

    async def start(self) -> None:
        """Return when Redis answers. Raises `Unavailable` when it cannot be started within 60 s."""
        await asyncio.to_thread(self.start_now)

    async def stop(self) -> None:
        """Stop the server if this process owns it; everything it acknowledged is on disk then."""
        await asyncio.to_thread(self.stop_now)

    def start_now(self) -> None:
        """`start` for code without an event loop."""
        if self._settings.redis_url is not None or self._thread is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stopping.clear()
        self._settled.clear()
        self._failure = None
        self._thread = threading.Thread(target=self._run, name="halftone-redis", daemon=True)
        self._thread.start()
        in_time = self._settled.wait(START_SECONDS)
        if self._failure is not None or not in_time:
            failure = self._failure or f"it did not answer within {START_SECONDS:g} s"
            self.stop_now()
            raise Unavailable(f"cannot start Redis: {failure}; see {self._folder / 'server.log'}")

    def stop_now(self) -> None:
        """`stop` for code without an event loop."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join()

    def _run(self) -> None:
        """The thread's life: own the server if nobody does, else wait for the place of the owner."""
        try:
            with (self._folder / "lock").open("a") as lock:
                if self._own(lock.fileno()):
                    self._supervise(redis_process.find_binary(), lock.fileno())
        except (OSError, Unavailable) as error:
            self._give_up(str(error))

    def _own(self, lock: int) -> bool:
        """Wait until the folder is ours (True) or we shall stop (False). Settled once anyone's server answers."""
        while not self._stopping.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                socket = _socket_in(address_file(self._settings))
                if socket is not None and redis_process.answers(socket):
                    self._settled.set()
                self._stopping.wait(_LOOK_SECONDS)
            else:
                return True
        return False

    def _supervise(self, binary: str, lock: int) -> None:
        socket = self._choose_socket()
        mute_starts = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            self.process = redis_process.start(binary, self._folder, socket, lock)
            answered = self._watch(self.process, socket)
            if self._stopping.is_set():
                redis_process.stop(self.process)
                break
            lived = time.monotonic() - began
            mute_starts = 0 if answered else mute_starts + 1
            if mute_starts >= MAX_MUTE_STARTS:
                self._give_up(f"the server ended {mute_starts} times in a row before it answered")
                break
            status = self.process.returncode
            log.error("the embedded Redis ended with status %s after %.1f s; restarting it", status, lived)
            self._stopping.wait(min(_FIRST_PAUSE * 2**mute_starts, _LONGEST_PAUSE))
        self.process = None
        self._forget(socket)

    def _forget(self, socket: Path) -> None:
        address_file(self._settings).unlink(missing_ok=True)
        socket.unlink(missing_ok=True)
        if socket.parent != self._folder:
            with suppress(FileNotFoundError):
                socket.parent.rmdir()

    def _watch(self, process: subprocess.Popen[bytes], socket: Path) -> bool:
        """Wait until the server ends or we shall stop it; whether it ever answered."""
        answered = False
        while process.poll() is None and not self._stopping.is_set():
            if not answered and redis_process.answers(socket):
                answered = True
                self._settled.set()
            self._stopping.wait(_LOOK_SECONDS if answered else _LOOK_SECONDS / 10)
        return answered

    def _give_up(self, why: str) -> None:
        log.error("giving up on the embedded Redis: %s", why)
        self._failure = why
        self._settled.set()

    def _choose_socket(self) -> Path:
        """The socket's path, written down for others: the last owner's place if that still serves, so that clients that
        know it find us; a short private folder where the data folder's name is too long for a socket."""
        socket = self._folder / "redis.sock"
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            before = _socket_in(address_file(self._settings))
            known = before is not None and before.parent != self._folder and _is_private(before.parent)
            socket = before if known and before else Path(tempfile.mkdtemp(prefix="halftone-")) / "redis.sock"
        fresh = address_file(self._settings).with_suffix(".new")
        fresh.write_text(f"unix://{quote(str(socket))}\n")
        fresh.replace(address_file(self._settings))
        return socket


def _socket_in(file: Path) -> Path | None:
    try:
        return Path(unquote(file.read_text(encoding="utf-8").strip().removeprefix("unix://")))
    except FileNotFoundError:
        return None


def _is_private(folder: Path) -> bool:
    try:
        facts = folder.lstat()
    except FileNotFoundError:
        return False
    return not folder.is_symlink() and facts.st_uid == os.getuid() and facts.st_mode & 0o777 == 0o700
