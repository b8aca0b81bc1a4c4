"""One at a time on the device, first come first served: denoiser, text encoders, VAEs. Knows no jobs and no torch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BREATH_SECONDS = 0.01
"""How long a turn lasts at least before it is lent to somebody who waits, where the work can be interrupted."""


@dataclass(eq=False)
class Turn:
    """What its holder knows of a turn.

    Attributes:
        breath: called at each breath; it may raise to end the work.
        since: when the turn began or came back, of the monotonic clock.
        lent_seconds: how long others had it meanwhile.
    """

    breath: Callable[[], None] = lambda: None
    since: float = field(default_factory=time.monotonic)
    lent_seconds: float = 0.0


class Turns:
    """A lock that is handed on in order of arrival.

    `threading.Lock` is not: the hub, which takes it again right after it lets go, would starve everybody else. Only
    one piece of arithmetic runs at a time because each already uses all cores; two at once are slower than in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False
        self._held = threading.local()

    @contextmanager
    def take(self, breath: Callable[[], None] = lambda: None) -> Iterator[Turn]:
        """Waits for the turn and holds it; `breath` is called wherever the work inside takes a breath."""
        self._acquire()
        self._held.turn = turn = Turn(breath)
        try:
            yield turn
        finally:
            del self._held.turn
            self._release()

    def breathe(self) -> None:
        """To be called inside long work, between two pieces of it: whoever waits for the turn has it in between.

        Does nothing on a thread that holds no turn. The work must bear that others run before it goes on.
        """
        turn: Turn | None = getattr(self._held, "turn", None)
        if turn is None:
            return
        now = time.monotonic()
        if self._waiting and now - turn.since >= BREATH_SECONDS:
            self._release()
            self._acquire()
            turn.since = time.monotonic()
            turn.lent_seconds += turn.since - now
        turn.breath()

    def _acquire(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def _release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
