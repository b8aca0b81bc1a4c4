"""Sending a result file: whole, a range of it, or nothing new; in pieces, so that long ones take no memory.

Knows how bytes are asked for, never what made them.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Mapping
from typing import BinaryIO

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import Expired, NotFound
from service.context import Gateway
from service.errors import RangeNotSatisfiable

MIME: Mapping[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "gif": "image/gif",
    "zip": "application/zip",
    "json": "application/json",
}
"""Content types by a file id's suffix."""

PIECE = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_JOB_PART = 32


async def send_file(gateway: Gateway, request: Request, owner: str, file_id: str) -> Response:
    """The answer with a file's bytes. A file never changes, so its id is its ETag. One `Range` at a time.

    Raises NotFound, also for another key's, Expired when it was there once, RangeNotSatisfiable.
    """
    etag = f'"{file_id}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={gateway.settings.result_ttl_seconds}, immutable",
        "Content-Disposition": f'inline; filename="{file_id}"',
    }
    file = await _open(gateway, owner, file_id)
    try:
        if _matches(request.headers.get("if-none-match"), etag):
            file.close()
            return Response(status_code=304, headers=headers)
        size = os.fstat(file.fileno()).st_size
        span = _span(request, etag, size)
    except BaseException:
        file.close()
        raise
    first, last = span or (0, size - 1)
    if span is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    count = 0 if request.method == "HEAD" else last - first + 1
    kind = MIME.get(file_id.rpartition(".")[2], "application/octet-stream")
    return FileBytes(file, first, count, 206 if span else 200, headers, kind)


class FileBytes(StreamingResponse):
    """`count` bytes of an open file from `first` on; closes it at the end, however that comes."""

    def __init__(
        self, file: BinaryIO, first: int, count: int, status: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(_pieces(file, first, count), status, headers, media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _pieces(file: BinaryIO, first: int, count: int) -> AsyncGenerator[bytes, None]:
    file.seek(first)
    while count > 0:
        piece = await asyncio.to_thread(file.read, min(count, PIECE))
        if not piece:
            return
        count -= len(piece)
        yield piece


async def _open(gateway: Gateway, owner: str, file_id: str) -> BinaryIO:
    job_id = file_id[:_JOB_PART]
    if gateway.keys.required:
        await gateway.queue.get(job_id, owner)
    try:
        return await asyncio.to_thread(gateway.store.open, file_id)
    except NotFound:
        if await _was_there(gateway, job_id, file_id):
            raise Expired("the file has expired; its job's record says how to make it again") from None
        raise


async def _was_there(gateway: Gateway, job_id: str, file_id: str) -> bool:
    try:
        job = await gateway.queue.get(job_id)
    except NotFound:
        return False
    return job.result is not None and any(file.id == file_id for file in job.result.files)


def _matches(header: str | None, etag: str) -> bool:
    return header is not None and any(tag.strip().removeprefix("W/") in (etag, "*") for tag in header.split(","))


def _span(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """First and last byte asked for; None for the whole file. Raises RangeNotSatisfiable."""
    header = request.headers.get("range")
    if_range = request.headers.get("if-range")
    if header is None or request.method == "HEAD" or (if_range is not None and if_range != etag):
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        raise RangeNotSatisfiable("ask for one range, like bytes=0-1023", size)
    start, end = match.groups()
    if not start:
        first, last = max(0, size - int(end)), size - 1
    else:
        first, last = int(start), min(int(end) if end else size - 1, size - 1)
    if first > last:
        raise RangeNotSatisfiable(f"the file has {size} bytes", size)
    return first, last
