"""Faults on their way out: the one table from exception class to HTTP status, and OpenAI's error envelope.

Knows no route and no policy. Whatever is not in the table is a bug and answers 500 without its details.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from jobs import errors as faults
from service import answers

log = logging.getLogger("halftone.service")

NO_RETRY = frozenset({faults.JobFailed, faults.TimedOut, faults.JobCanceled, faults.IdempotencyConflict})
"""Faults that the same request would meet again, or that would queue a second job: clients are told not to retry."""


class MalformedBody(faults.InvalidRequest):
    """The body is not JSON in UTF-8."""

    code = "invalid_json"


class BodyTooLarge(faults.InvalidRequest):
    """The body has more bytes than the gateway reads."""

    code = "body_too_large"


class UnsupportedBody(faults.InvalidRequest):
    """The body's type, charset or encoding is not one that the gateway reads."""

    code = "unsupported_media_type"


class BodyTooSlow(faults.InvalidRequest):
    """The body did not arrive in time."""

    code = "body_timeout"


class InvalidHeader(faults.InvalidRequest):
    """A request header has a value that the gateway does not understand."""

    code = "invalid_header"


class UrlTooLong(faults.InvalidRequest):
    """Path and query have more bytes than the gateway reads."""

    code = "url_too_long"


class HeadersTooLarge(faults.InvalidRequest):
    """The header fields have more bytes than the gateway reads."""

    code = "headers_too_large"


class WrongHost(faults.InvalidRequest):
    """The Host header names another machine: a web page that points its own name at this one (DNS rebinding)."""

    code = "wrong_host"


class RangeNotSatisfiable(faults.InvalidRequest):
    """The Range header asks for bytes that the file does not have, or for several ranges."""

    code = "range_not_satisfiable"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message, param="Range")
        self.size = size


class NoContent(faults.HalftoneError):
    """A video's file was asked for that is not there, or not yet."""

    code = "no_content"


class ClientGone(faults.HalftoneError):
    """The client closed the connection before its answer; nobody reads this, it is for the records."""

    code = "client_closed_request"


class Busy(faults.HalftoneError):
    """The gateway holds as many open requests as it may, or is shutting down."""

    code = "busy"


STATUS: dict[type[faults.HalftoneError], int] = {
    faults.HalftoneError: 500,
    faults.InvalidRequest: 422,
    MalformedBody: 400,
    InvalidHeader: 400,
    BodyTooLarge: 413,
    UnsupportedBody: 415,
    BodyTooSlow: 408,
    UrlTooLong: 414,
    HeadersTooLarge: 431,
    WrongHost: 421,
    RangeNotSatisfiable: 416,
    faults.UnknownModel: 404,
    faults.UnknownProfile: 422,
    faults.PromiseUnmet: 422,
    faults.ProfileFailed: 422,
    faults.NotFound: 404,
    faults.Expired: 410,
    faults.JobFinished: 409,
    faults.IdempotencyConflict: 409,
    faults.JobCanceled: 409,
    NoContent: 409,
    faults.Unauthorized: 401,
    faults.QueueFull: 429,
    faults.NoWorker: 503,
    faults.Unavailable: 503,
    Busy: 503,
    ClientGone: 499,
    faults.DiskFull: 507,
    faults.JobFailed: 500,
    faults.TimedOut: 504,
}
"""Status by exception class; a class that is not listed has its nearest listed ancestor's."""


def status_of(fault: faults.HalftoneError) -> int:
    """The HTTP status of a fault."""
    return next(STATUS[cls] for cls in type(fault).__mro__ if cls in STATUS)


def kind_of(status: int) -> str:
    """OpenAI's `type` for a status."""
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def envelope(fault: faults.HalftoneError) -> dict[str, Any]:
    """The body that tells a fault, in OpenAI's shape."""
    kind = kind_of(status_of(fault))
    return {"error": {"message": fault.message, "type": kind, "param": fault.param, "code": fault.code}}


def respond(fault: faults.HalftoneError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The whole answer to a fault: status, envelope, and the headers that belong to them."""
    status = status_of(fault)
    extra = dict(headers or {})
    if fault.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(fault.retry_after)))
    elif status in (429, 503):
        extra["Retry-After"] = "5"
    if status == HTTPStatus.UNAUTHORIZED:
        extra["WWW-Authenticate"] = 'Bearer realm="halftone"'
    if isinstance(fault, RangeNotSatisfiable):
        extra["Content-Range"] = f"bytes */{fault.size}"
    if isinstance(fault, BodyTooLarge | UnsupportedBody | BodyTooSlow):
        extra["Connection"] = "close"  # the rest of the body is not read
    if type(fault) in NO_RETRY:
        extra["x-should-retry"] = "false"  # the official client heeds it
    return answers.json_answer(envelope(fault), status=status, headers=extra)


def from_validation(details: Sequence[ErrorDetails], known: Sequence[str] = ()) -> faults.InvalidRequest:
    """One fault from pydantic's list: names the first field at fault, says what was expected and counts the others.

    `known` are the field names that an unknown one could have meant.
    """
    first = details[0]
    param = ".".join(str(part) for part in first["loc"])[:100]
    others = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    if first["type"] == "extra_forbidden":
        text = f"unknown field {param!r}" + (f"; known fields: {', '.join(sorted(known))}" if known else "")
    elif first["type"] == "missing":
        text = f"{param}: this field is required"
    else:
        text = f"{param or 'body'}: {first['msg'].removeprefix('Value error, ')}{_got(first.get('input'))}"
    return faults.InvalidRequest(text + others, param=param or None)


def _got(value: object) -> str:
    """The wrong value, when it is short enough to help."""
    if value is None or not isinstance(value, str | int | float | bool):
        return ""
    text = ascii(value)
    return f"; got {text}" if len(text) <= 40 else ""


async def _on_fault(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, faults.HalftoneError):
        raise error
    return respond(error)


async def _on_validation(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError | ValidationError):
        raise error
    details: list[ErrorDetails] = list(error.errors())
    for detail in details:
        detail["loc"] = tuple(part for part in detail["loc"] if part not in ("body", "query", "path", "header"))
    return respond(from_validation(details))


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    """404 for an unknown path, 405 for a wrong method: Starlette's own, put into the envelope."""
    if not isinstance(error, HTTPException):
        raise error
    codes = {404: "unknown_route", 405: "method_not_allowed"}
    text = {404: "no such route; see /docs or /openapi.json", 405: "this route does not take that method"}
    message = text.get(error.status_code, str(error.detail))
    code = codes.get(error.status_code, "http_error")
    body = {"error": {"message": message, "type": kind_of(error.status_code), "param": None, "code": code}}
    return answers.json_answer(body, status=error.status_code, headers=dict(error.headers or {}))


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected fault on %s %s", request.method, request.url.path, exc_info=error)
    return respond(faults.HalftoneError("an internal error; the gateway's log has the details"))


def install(app: FastAPI) -> None:
    """Register every handler on the application."""
    app.add_exception_handler(faults.HalftoneError, _on_fault)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
