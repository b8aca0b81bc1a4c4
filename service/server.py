"""Runs the application on a port and ends it in order: announce, take nothing new, finish the rest. Knows no route."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn

from service.app import create_app, open_gateway
from service.context import Gateway
from service.protocol import TimedProtocol
from service.settings import Settings

log = logging.getLogger("halftone.service")

_HEAD_BYTES = 64 * 1024
"""More than the bounds on URL and headers, which answer in the envelope; beyond this the connection is dropped."""
_ANSWER_SECONDS = 2.0


class GatewayServer(uvicorn.Server):
    """uvicorn, with an announced shutdown: /readyz says DRAINING before the port closes."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self.listening = asyncio.Event()

    @property
    def port(self) -> int:
        """The port that is listened on, once started."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self._gateway.errand(self._gateway.warm_up(), "warm-up")
            self.listening.set()
            log.info("listening on http://%s:%d", self._gateway.settings.host, self.port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: announce, then close. Second: leave at once."""
        if self._gateway.draining:
            self.should_exit = self.force_exit = True
        self._loop.call_soon_threadsafe(self.leave)

    def leave(self) -> None:
        """Begin the shutdown; call from the loop's thread."""
        settings = self._gateway.settings
        notice = settings.drain_notice_seconds
        self._gateway.drain(last_call_in=notice + max(0.0, settings.drain_seconds - _ANSWER_SECONDS))
        self._loop.call_later(notice, self._close_port)

    async def close(self) -> None:
        """Let go of what the gateway holds; after `serve()` has returned."""
        await self._gateway.close()

    def _close_port(self) -> None:
        self.should_exit = True


def make_server(settings: Settings) -> GatewayServer:
    """A server ready to `serve()`; call inside a running event loop."""
    gateway = open_gateway(settings)
    config = uvicorn.Config(
        create_app(gateway),
        host=settings.host,
        port=settings.port,
        http=TimedProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.drain_seconds,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        backlog=512,
    )
    return GatewayServer(config, gateway)


async def serve(settings: Settings) -> None:
    """Serve until a signal comes."""
    server = make_server(settings)
    try:
        await server.serve()
    finally:
        await server.close()
