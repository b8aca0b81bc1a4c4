"""/v1/files/{id}: result pictures, with ranges and validators. Knows how bytes are asked for, never what made them."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Request, Response

from jobs.errors import Expired, NotFound
from service import documents
from service.context import Gateway, gateway_of, owner_of
from service.errors import RangeNotSatisfiable

router = APIRouter(tags=["Files"])

_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "jpg": "image/jpeg"}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_JOB_PART = 32
_PICTURE: dict[str, Any] = {"content": {kind: {} for kind in sorted(set(_TYPES.values()))}}
_ANSWERS = documents.faults(404, 410, 416) | {
    200: {**_PICTURE, "description": "The picture."},
    206: {**_PICTURE, "description": "The range that was asked for."},
    304: {"description": "The client has it already (If-None-Match)."},
}


@router.get("/v1/files/{file_id}", response_class=Response, responses=_ANSWERS)
@router.head("/v1/files/{file_id}", response_class=Response, responses=_ANSWERS)
async def get_file(request: Request, file_id: str, owner: Annotated[str, Depends(owner_of)]) -> Response:
    """A result picture. A file never changes, so its id is its ETag. One `Range` at a time."""
    gateway = gateway_of(request)
    etag = f'"{file_id}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={gateway.settings.result_ttl_seconds}, immutable",
        "Content-Disposition": f'inline; filename="{file_id}"',
    }
    with await _open(gateway, owner, file_id) as file:
        if _matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        size = os.fstat(file.fileno()).st_size
        span = _span(request, etag, size)
        first, last = span or (0, size - 1)
        if span is not None:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers["Content-Length"] = str(last - first + 1)
        data = b"" if request.method == "HEAD" else await asyncio.to_thread(_read, file, first, last - first + 1)
    kind = _TYPES.get(file_id.rpartition(".")[2], "application/octet-stream")
    return Response(data, 206 if span else 200, headers, media_type=kind)


async def _open(gateway: Gateway, owner: str, file_id: str) -> BinaryIO:
    """The file, for reading; raises NotFound, also for another key's, or Expired when it was there once."""
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
        raise _unsatisfiable(size, "ask for one range, like bytes=0-1023")
    start, end = match.groups()
    if not start:
        first, last = max(0, size - int(end)), size - 1
    else:
        first, last = int(start), min(int(end) if end else size - 1, size - 1)
    if first > last:
        raise _unsatisfiable(size, f"the file has {size} bytes")
    return first, last


def _unsatisfiable(size: int, message: str) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(message, size)


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)
