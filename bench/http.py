"""A client thin enough not to be what is measured: one kept connection, JSON in, JSON out. Only for benches."""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self


class Connection:
    """One HTTP/1.1 connection to 127.0.0.1 that sends one request after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        """Connects."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects."""
        if self._writer is not None:
            self._writer.close()

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer to one request.

        Raises:
            RuntimeError: the status is no 2xx, or the connection is not open.
        """
        if self._reader is None or self._writer is None:
            raise RuntimeError("the connection is used outside its `async with`")
        data = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        raw = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = int(raw.split(" ", 2)[1])
        lines = (line.split(":", 1) for line in raw.split("\r\n")[1:] if ":" in line)
        headers = {name.lower(): value.strip() for name, value in lines}
        text = await self._reader.readexactly(int(headers.get("content-length", 0)))
        if status // 100 != 2:
            raise RuntimeError(f"{method} {path}: {status} {text[:300]!r}")
        answer: dict[str, Any] = json.loads(text)
        return answer
