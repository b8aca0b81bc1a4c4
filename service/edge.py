"""What every request meets first and last: bounds on its head, the drain, security headers, the access line, metrics.

Plain ASGI, outside of everything else, so that no answer escapes it. Knows no route.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import HalftoneError
from service import errors
from service.context import Gateway
from service.settings import is_loopback

log = logging.getLogger("halftone.access")

MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 16 * 1024
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Answered whatever the load: who asks must learn how things stand."""

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-site",
}


class Edge:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway
        settings = gateway.settings
        # a page of another site may point its own name at this machine; its requests then carry that name
        self._loopback_only = not gateway.keys.required and is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP is handed through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _mark(message)
            await send(message)

        gateway = self._gateway
        gateway.open_requests += 1
        try:
            fault = self._refusal(scope)
            if fault is not None:
                await errors.respond(fault, {"Connection": "close"})(scope, receive, send_marked)
            else:
                await self._app(scope, receive, send_marked)
        finally:
            gateway.open_requests -= 1
            self._record(scope, status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> HalftoneError | None:
        """Why a request goes no further, judged by its head alone."""
        gateway = self._gateway
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_URL_BYTES:
            return errors.UrlTooLong(f"path and query must be at most {MAX_URL_BYTES} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return errors.HeadersTooLarge(f"headers must be at most {MAX_HEADER_BYTES} bytes in all")
        if self._loopback_only and not _is_local_name(scope["headers"]):
            return errors.WrongHost(
                "without API keys only this machine is served, by its own name: use localhost, or set API keys"
            )
        if scope["path"] in PROBES:
            return None
        if gateway.draining and scope["method"] in ("POST", "PUT"):
            return errors.Busy("the gateway is shutting down", retry_after=5)
        if gateway.open_requests > gateway.settings.max_open_requests:
            return errors.Busy(f"{gateway.settings.max_open_requests} requests are open already", retry_after=1)
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics = self._gateway.metrics
        metrics.requests.labels(route, method, str(status)).inc()
        metrics.seconds.labels(route, method).observe(seconds)
        metrics.open_requests.set(self._gateway.open_requests)
        if route not in PROBES:
            log.info("method=%s route=%s status=%d ms=%.1f", method, route, status, seconds * 1000)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def _mark(message: Message) -> None:
    headers = MutableHeaders(raw=message["headers"])
    for name, value in SECURITY_HEADERS.items():
        headers[name] = value
    if "cache-control" not in headers:
        headers["Cache-Control"] = "no-store"


def _is_local_name(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return not name or is_loopback(name.lower())
