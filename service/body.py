"""Bounded reading of a JSON body: bytes, time, depth, keys, numbers and text. Knows no field and no route."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from email.message import Message
from typing import Any, NoReturn

from fastapi import Request

from jobs.errors import InvalidRequest
from service.errors import BodyTooLarge, BodyTooSlow, MalformedBody, UnsupportedBody

MAX_DEPTH = 16
MAX_KEYS = 256
MAX_DIGITS = 20
"""No number of ours has more; Python itself refuses over 4300 digits with an error that names no field."""
READ_SECONDS = 30.0


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises UnsupportedBody (415), BodyTooLarge (413), BodyTooSlow (408), MalformedBody (400: not JSON) or
    InvalidRequest (422: JSON that breaks a bound, or is no object).
    """
    _check_type(request)
    return parse_object(await read_bytes(request, max_bytes))


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The request's body, whole; raises UnsupportedBody (415: compressed), BodyTooLarge (413), BodyTooSlow (408)."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedBody(f"Content-Encoding {encoding[:40]!r} is not supported; send the body uncompressed")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await _read(request, max_bytes)
    except TimeoutError:
        raise BodyTooSlow(f"the body must arrive within {READ_SECONDS:.0f} seconds") from None


def from_another_site(request: Request) -> bool:
    """Whether another site's web page sends this: what a browser sends across origins without asking first."""
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] != request.headers.get("host")


def _check_type(request: Request) -> None:
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    try:
        charset = header.get_content_charset("utf-8")
    except ValueError:  # of a number that Python does not read
        charset = None
    if header.get_content_type() != "application/json" or charset not in ("utf-8", "utf8", "us-ascii"):
        # also keeps other sites' web pages out: a browser sends this type across origins only after asking
        raise UnsupportedBody("send the body as JSON in UTF-8, with the header Content-Type: application/json")


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body must be at most {max_bytes} bytes")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Bytes to a JSON object within the bounds; raises MalformedBody or InvalidRequest."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise MalformedBody("the body must not start with a byte order mark")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body must be UTF-8; byte {error.start} is not") from None
    keys = _KeyCounter()
    try:
        value = json.loads(
            text,
            object_pairs_hook=keys.build,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise InvalidRequest('the body must be a JSON object, like {"prompt": "..."}')
    _check_tree(value)
    return value


class _KeyCounter:
    """Builds objects while counting their keys over the whole body."""

    def __init__(self) -> None:
        self.count = 0

    def build(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object of these pairs; raises InvalidRequest on a repeated key or too many keys."""
        self.count += len(pairs)
        if self.count > MAX_KEYS:
            raise InvalidRequest(f"the body must have at most {MAX_KEYS} keys")
        built = dict(pairs)
        if len(built) < len(pairs):
            repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InvalidRequest(f"the key {ascii(repeated)[:100]} appears twice", param=repeated[:100])
        return built


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise InvalidRequest(f"a number has {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRequest(f"the number {digits[:40]} is out of range")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"{name} is not JSON")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body must be at most {MAX_DEPTH} levels deep")


def _check_tree(root: dict[str, Any]) -> None:
    """Depth and text of a parsed body, without recursion."""
    containers: list[dict[str, Any] | list[Any]] = [root]
    for _ in range(MAX_DEPTH):
        below: list[dict[str, Any] | list[Any]] = []
        for container in containers:
            nodes = [*container.keys(), *container.values()] if isinstance(container, dict) else container
            for node in nodes:
                if isinstance(node, str):
                    _check_text(node)
                elif isinstance(node, dict | list):
                    below.append(node)
        containers = below
        if not containers:
            return
    raise _too_deep()


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("text must not contain lone surrogates, like \\ud800") from None
