"""The way between the supervisor and its device child: messages as JSON, one a line, over a socket pair.

Knows neither Redis nor torch, nor what either end does with a message.
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from workers.messages import FromChild, Message, ToChild

MAX_LINE_BYTES = 16 * 2**20
"""Bound of one message; the largest are previews."""


class ChannelError(Exception):
    """The other end sent something that is no message."""


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
