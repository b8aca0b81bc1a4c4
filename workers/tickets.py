"""Waiting denoiser calls, and which goes first. Runs nothing; knows ranks, ages and seconds, never threads or tensors.

Light calls (a picture's) overtake a heavy one (a video's), so that they wait for one heavy call at most, not for one of
each heavy job in between; until they took as long as the heavy one will: then it is its turn. Among equals the oldest
call goes first, which is round robin.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.denoiser import Denoiser, DenoiserCall

AGEING_SECONDS = 2.0
"""A call that waited so long ranks one priority higher: nothing starves."""

LIGHTER = 4.0
"""A call is light beside one that takes at least so many times as long."""

PATIENCE_SHARE = 0.25
PATIENCE_SECONDS = 0.05
"""How long a heavy call waits for a light one that is on its way: a share of its own time, at most the seconds."""


@dataclass(frozen=True)
class Served:
    """A denoiser under the names that metrics and limits know it by."""

    model: str
    profile: str
    denoiser: Denoiser

    def close(self) -> None:
        """Lets go of its weights, whoever still knows it, where it can; it must not be called any more."""
        if close := getattr(self.denoiser, "close", None):
            close()


@dataclass(eq=False)
class Ticket:
    """One call that waits for its rows."""

    task: Task
    served: Served
    call: DenoiserCall
    key: Hashable
    born: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    output: Tensor | None = None
    error: Exception | None = None
    overtaken: float = 0.0
    """Seconds that lighter calls have run instead, since one as heavy ran."""

    def urgency(self, now: float) -> tuple[int, bool, float]:
        """Smaller goes first: rank less age, then a job's first call before others' next ones, then the older."""
        aged = 0 if self.task.background else int((now - self.born) / AGEING_SECONDS)
        rank = max(0, self.task.rank - aged)
        return rank, self.task.denoiser_calls > 0, self.born


@dataclass(frozen=True)
class Between:
    """A job that will come with a call soon.

    Attributes:
        task: the job.
        since: when that was known.
        key: of its last call; None before its first.
        until: until when it is worth waiting for by those who would share its batch.
    """

    task: Task
    since: float
    key: Hashable | None = None
    until: float = 0.0


class Order:
    """Says who is next."""

    def __init__(self, seconds_of: Callable[[Hashable], float | None]) -> None:
        """`seconds_of`: how long calls of a key took last; None while that is not known."""
        self._seconds_of = seconds_of

    def sorted(self, waiting: Sequence[Ticket], now: float) -> list[Ticket]:
        """The calls by urgency, those that overtake first."""
        order = sorted(waiting, key=lambda ticket: ticket.urgency(now))
        light = [ticket for ticket in order[1:] if self._overtakes(ticket.key, ticket.task, order[0])]
        return light + [ticket for ticket in order if ticket not in light]

    def patience(self, coming: Iterable[Between], first: Ticket, now: float) -> float:
        """For how many seconds more the first call should wait for light ones to come; 0 when it should not."""
        heavy = self._seconds_of(first.key) or 0.0
        most = min(PATIENCE_SECONDS, PATIENCE_SHARE * heavy)
        known = [one for one in coming if self._overtakes(one.key, one.task, first)]
        return max([0.0, *(one.since + most - now for one in known)])

    def ran(self, lead: Ticket, left: Sequence[Ticket], seconds: float) -> None:
        """A batch led by `lead` took so long, while the calls `left` waited."""
        mine = self._seconds_of(lead.key) or seconds
        for ticket in left:
            heavier = (self._seconds_of(ticket.key) or 0.0) >= LIGHTER * mine
            ticket.overtaken = ticket.overtaken + seconds if heavier else 0.0

    def _overtakes(self, key: Hashable | None, task: Task, first: Ticket) -> bool:
        heavy = self._seconds_of(first.key)
        light = 0.0 if key is None else self._seconds_of(key)
        if heavy is None or light is None or first.overtaken >= heavy:
            return False
        return task.rank <= first.task.rank and LIGHTER * light <= heavy
