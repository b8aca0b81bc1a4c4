"""Keeps one device child alive: starts it, listens to it, and replaces it when it dies, ever slower if it keeps dying.

Knows the channel and the causes of death; what messages and deaths mean for jobs is the supervisor's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from workers.channel import ChannelError
from workers.child import Cause, Child, Death
from workers.messages import FromChild, Ready, Stop, ToChild
from workers.metrics import Metrics
from workers.watchdog import Vitals

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

log = logging.getLogger(__name__)


class ChildKeeper:
    """The child of the moment. `heard` gets every message, `died` every end, both on the event loop."""

    def __init__(
        self,
        command: Sequence[str],
        last_words_seconds: float,
        metrics: Metrics,
        heard: Callable[[FromChild], None],
        died: Callable[[Death], None],
    ) -> None:
        self._command = command
        self._last_words = last_words_seconds
        self._metrics = metrics
        self._heard = heard
        self._died = died
        self._child: Child | None = None
        self._stopping = False
        self._pause = FIRST_PAUSE
        self._started_at = self._heard_at = time.monotonic()
        self.ready: Ready | None = None

    async def run(self) -> None:
        """Keep a child until `stop` is called."""
        while not self._stopping:
            self._started_at = self._heard_at = time.monotonic()
            self._child = await Child.start(self._command)
            death = await self._live(self._child)
            self._child = self.ready = None
            self._died(death)
            if not self._stopping:
                log.warning("device child lost: %s (%s); next in %g s", death.detail, death.cause, self._pause)
                self._metrics.child_gone(death.cause)
                await asyncio.sleep(self._pause)
                # a kill from outside says nothing about the next child's chances
                self._pause = FIRST_PAUSE if death.cause is Cause.OUTSIDE else min(2 * self._pause, LONGEST_PAUSE)

    async def _live(self, child: Child) -> Death:
        """Listen to a child until it is gone."""
        try:
            while (message := await child.channel.receive()) is not None:
                self._heard_at = time.monotonic()
                if isinstance(message, Ready):
                    self.ready = message
                    log.info("device child %d is ready on %s", child.pid, message.device)
                self._metrics.heard(message, self.device)
                self._heard(message)
            last_words = f"it closed its channel and did not exit within {self._last_words:g} s"
        except ChannelError as error:
            child.end(Death(Cause.CRASH, str(error)))
            last_words = str(error)
        try:
            async with asyncio.timeout(self._last_words):
                return await child.wait()
        except TimeoutError:
            child.end(Death(Cause.CRASH, last_words))
            return await child.wait()

    @property
    def device(self) -> str:
        """The child's device, `none` while there is no child."""
        return self.ready.device if self.ready else "none"

    def vitals(self, now: float) -> Vitals | None:
        """How the child does; None while there is none."""
        if self._child is None:
            return None
        silence = now - self._heard_at
        frozen = silence > 1 and self._child.frozen
        return Vitals(age=now - self._started_at, silence=silence, ready=self.ready is not None, frozen=frozen)

    def forgive(self, seconds: float) -> None:
        """Take back `seconds` of silence in which nobody listened."""
        self._heard_at += seconds
        self._started_at += seconds

    def proved(self) -> None:
        """The child did something right: if it dies, the next may start at once."""
        self._pause = FIRST_PAUSE

    def send(self, message: ToChild) -> None:
        """Send, if there is a child; the jobs of a dead one come back through `died` anyway."""
        if self._child is not None:
            self._child.channel.send(message)

    def end(self, death: Death) -> None:
        """Kill the child."""
        if self._child is not None:
            log.error("device child %d is killed: %s", self._child.pid, death.detail)
            self._child.end(death)

    async def stop(self, task: asyncio.Task[None], *, at_once: bool) -> None:
        """End the child for good and wait for `task`, which is `run`. Politely unless `at_once`."""
        self._stopping = True
        if self._child is not None:
            self._child.stopping()
            self.send(Stop())
            if at_once:
                self.end(Death(Cause.STOPPED, "the worker stops"))
        done, _ = await asyncio.wait([task], timeout=self._last_words)
        if not done:
            self.end(Death(Cause.STOPPED, "the worker stops"))
            await task
