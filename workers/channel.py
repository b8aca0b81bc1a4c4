"""Typed messages between the supervisor and its device child: one JSON line each over a socket pair.

Knows neither Redis nor torch, nor what either end does with a message. A job is named by id *and* owner token, because
a supervisor that was frozen past its lease may take the same job again while the child still ends the first run.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.job import Failure, JobResult
from jobs.request import ImageRequest

MAX_LINE_BYTES = 16 * 2**20
"""Bound of one message; the largest are previews."""


class ChannelError(Exception):
    """The other end sent something that is no message."""


class Message(BaseModel):
    """Root of all messages."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JobMessage(Message):
    """A message about one run of one job."""

    job_id: str
    token: str


# ---- to the child ---------------------------------------------------------------------------------------------------


class Run(JobMessage):
    """Make the pictures and store them under `results_dir` (ResultStore names files by job id and token)."""

    type: Literal["run"] = "run"
    request: ImageRequest
    results_dir: Path
    queue_seconds: float = Field(0.0, description="Goes into the result's costs.")


class Cancel(JobMessage):
    """Stop this run at its next step; answered by Canceled, or by Finished or Failed when it was already over."""

    type: Literal["cancel"] = "cancel"


class Stop(Message):
    """Exit with status 0. Nothing runs any more, or what runs is not wanted."""

    type: Literal["stop"] = "stop"


# ---- from the child -------------------------------------------------------------------------------------------------


class Ready(Message):
    """The child takes jobs from now on. `profiles`: model id to the names of the profiles it can run."""

    type: Literal["ready"] = "ready"
    device: str = Field(description="As in the metrics' label, e.g. `cpu` or `cuda:0`.")
    profiles: dict[str, tuple[str, ...]]


class Started(JobMessage):
    """The job left the child's door and works: from now on the bounds on progress hold."""

    type: Literal["started"] = "started"


class Stepped(JobMessage):
    """`step` of `total` denoising steps are done. Sent at every step; the supervisor throttles."""

    type: Literal["stepped"] = "stepped"
    step: int
    total: int


class Previewed(JobMessage):
    """A small picture of how far the job is. `b64` is the encoded file in base64."""

    type: Literal["previewed"] = "previewed"
    index: int
    mime: str
    b64: str


class Finished(JobMessage):
    """The files are stored, synced and renamed; nothing is left to do but to settle."""

    type: Literal["finished"] = "finished"
    result: JobResult


class Failed(JobMessage):
    """The job failed in a way that leaves the child well. It stored no files."""

    type: Literal["failed"] = "failed"
    failure: Failure


class Canceled(JobMessage):
    """The job stopped because it was told to. It stored no files."""

    type: Literal["canceled"] = "canceled"


class BatchRan(Message):
    """One denoiser call: `rows` rows of `jobs` jobs in `seconds`; of `fallbacks` rows no table knew the timestep."""

    type: Literal["batch_ran"] = "batch_ran"
    model: str
    profile: str
    backend: str
    rows: int
    jobs: int
    seconds: float
    is_warmup: bool = False
    fallbacks: int = 0


class StageTook(Message):
    """One stage of one job took `seconds`."""

    type: Literal["stage_took"] = "stage_took"
    stage: Literal["load", "text_encode", "denoise", "vae_decode", "encode", "store"]
    seconds: float
    model: str
    profile: str
    backend: str
    is_warmup: bool = False


class Loaded(Message):
    """A profile became resident. `weights_bytes` are its denoiser's, of all compiled copies."""

    type: Literal["loaded"] = "loaded"
    model: str
    profile: str
    backend: str
    seconds: float
    weights_bytes: int


class Resized(Message):
    """A resident profile takes another amount of memory: copies of its weights are compiled as batch sizes come up."""

    type: Literal["resized"] = "resized"
    model: str
    profile: str
    weights_bytes: int


class Evicted(Message):
    """A profile left memory."""

    type: Literal["evicted"] = "evicted"
    model: str
    profile: str
    reason: str


class Memory(Message):
    """The child's memory in bytes, as the operating system and the device see it."""

    type: Literal["memory"] = "memory"
    rss_bytes: int
    peak_bytes: int
    device_bytes: int = Field(0, description="Allocated on the device; 0 on a CPU.")


class Alive(Message):
    """The process is not frozen. Sent every second from a thread of its own; a job that hangs is known by its steps."""

    type: Literal["alive"] = "alive"


ToChild = Run | Cancel | Stop
OfJob = Started | Stepped | Previewed | Finished | Failed | Canceled
FromChild = Ready | OfJob | BatchRan | StageTook | Loaded | Resized | Evicted | Memory | Alive

M = TypeVar("M")

_PR_SET_PDEATHSIG = 1

_TO_CHILD: TypeAdapter[ToChild] = TypeAdapter(Annotated[ToChild, Field(discriminator="type")])
_FROM_CHILD: TypeAdapter[FromChild] = TypeAdapter(Annotated[FromChild, Field(discriminator="type")])


def _encode(message: Message) -> bytes:
    return message.model_dump_json().encode() + b"\n"


def _decode(adapter: TypeAdapter[M], line: bytes) -> M:
    try:
        return adapter.validate_json(line)
    except ValidationError as error:
        raise ChannelError(f"not a message: {line[:200]!r}: {error}") from error


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent dies. Elsewhere the end of the stream must do."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


class ChildEnd:
    """The child's end: blocking, one reader, any number of sending threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lines = sock.makefile("rb")
        self._sending = threading.Lock()

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Take over the descriptor that came with `--fd`, and bind this process's life to its supervisor's."""
        _die_with_parent()
        sock = socket.socket(fileno=fd)
        sock.setblocking(True)
        return cls(sock)

    def send(self, message: FromChild) -> None:
        """Send one message, whole, from any thread.

        Raises:
            OSError: the supervisor is gone; the child should exit.
        """
        data = _encode(message)
        with self._sending:
            self._sock.sendall(data)

    def __iter__(self) -> Iterator[ToChild]:
        """Messages until the supervisor closes its end, or dies.

        Raises:
            ChannelError: a line is no message.
        """
        while line := self._read():
            if not line.endswith(b"\n"):
                return  # the supervisor died in the middle of a line
            yield _decode(_TO_CHILD, line)

    def _read(self) -> bytes:
        try:
            return self._lines.readline(MAX_LINE_BYTES)
        except ConnectionError:  # it died before it read all that we sent
            return b""

    def close(self) -> None:
        """Close the end; the supervisor sees the end of the stream."""
        self._lines.close()
        self._sock.close()


class SupervisorEnd:
    """The supervisor's end, on asyncio."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """Wrap the supervisor's half of the pair."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES))

    def send(self, message: ToChild) -> None:
        """Queue one message. Never waits: what is sent is bounded by the room for jobs, and a child may be frozen."""
        if not self._writer.is_closing():
            self._writer.write(_encode(message))

    async def receive(self) -> FromChild | None:
        """The next message, or None when the child closed its end or died.

        Raises:
            ChannelError: a line is no message, or too long to be one.
        """
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        except ValueError as error:
            raise ChannelError(f"a line of more than {MAX_LINE_BYTES} bytes") from error
        if not line.endswith(b"\n"):
            return None  # the child died in the middle of a line
        return _decode(_FROM_CHILD, line)

    def close(self) -> None:
        """Close the end; the child sees the end of the stream."""
        self._writer.close()
