"""Which denoiser calls run together: one thread that batches the waiting calls of all jobs, whatever step each is at.

Knows ranks, ages and group keys; the tensor work is `pipelines.batch`'s. Must not know requests, files or the channel.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.rows import MAX_ROWS, RowLimits, Search
from workers.task import Task
from workers.tickets import Between, Order, Served, Ticket
from workers.turns import Turns

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.denoiser import DenoiserCall

__all__ = ["Batch", "Hub", "Served"]

log = logging.getLogger(__name__)

STRAGGLER_SECONDS = 0.002
STRAGGLER_SHARE = 0.2
"""How long a batch waits for jobs that ran in the last one and are between two calls: at least the seconds, or that
share of what the last batch took. Lock-step jobs come back within a scheduler step, and a fuller batch pays it back."""

MEASURE_SECONDS = 10.0
"""Measuring a limit at load ends after about so long, with what is known by then; calls slower than a tenth of it are
not measured at all but learned from."""

IDLE_SECONDS = 0.5
WAITING_SECONDS = 1.0


@dataclass(frozen=True)
class Batch:
    """What is told of one run of a denoiser."""

    served: Served
    rows: int
    jobs: int
    seconds: float
    is_warmup: bool = False
    fallbacks: int = 0


class Hub:
    """Runs the calls of all jobs. `run` is called by job threads; everything else happens on the hub's own."""

    def __init__(self, turns: Turns, tell: Callable[[Batch], None]) -> None:
        self._turns = turns
        self._tell = tell
        self._limits = RowLimits()
        self._changed = threading.Condition()
        self._order = Order(lambda key: self._limits.of(key).seconds)
        self._waiting: list[Ticket] = []
        self._between: dict[Task, Between] = {}
        self._stopping = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="hub", daemon=True)

    def start(self) -> None:
        """Starts the hub's thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the hub's thread after the batch that runs, and waits for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def stuck_seconds(self) -> float:
        """How long the hub's thread has been inside one thing; infinite when it is dead."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def run(self, task: Task, served: Served, call: DenoiserCall, waiting: Callable[[], None] = lambda: None) -> Tensor:
        """Waits until the call has run, in whatever company; gives its rows back. `waiting` is called meanwhile, about
        every second, and must not raise.

        Raises:
            JobCanceledSignal: the task was canceled, before or meanwhile.
            Exception: what the denoiser raised on this call's rows alone.
        """
        from pipelines.batch import group_key  # torch, which a child that serves no model need not load

        ticket = Ticket(task, served, call, (served.model, served.profile, group_key(call)))
        task.on_cancel(ticket.done.set)
        with self._changed:
            self._between.pop(task, None)
            self._waiting.append(ticket)
            self._changed.notify_all()
        while not ticket.done.wait(WAITING_SECONDS):
            waiting()
        task.denoiser_calls += 1
        if task.canceled:
            self.leave(task)
            task.check()
        if ticket.error is not None:
            raise ticket.error
        if ticket.output is None:
            raise RuntimeError("the hub answered a call with nothing")
        return ticket.output

    def leave(self, task: Task) -> None:
        """The task makes no more calls for now: nobody waits for it."""
        with self._changed:
            self._between.pop(task, None)
            self._waiting = [ticket for ticket in self._waiting if ticket.task is not task]
            self._changed.notify_all()

    def expect(self, task: Task) -> None:
        """The task will come with its first call at once, or takes the device's turn itself: worth a moment's wait."""
        with self._changed:
            self._between[task] = Between(task, time.monotonic())

    def measure(self, served: Served, call: DenoiserCall, seconds: float) -> int:
        """Finds the row limit for a call's shape by running it, in turn with others; returns the limit.

        `seconds` is what one call took before: what is too slow to be measured now is learned from the jobs' own calls.
        """
        from pipelines.batch import group_key, repeat, run_together

        def seconds_of(rows: int) -> float:
            with self._turns.take():
                started = time.monotonic()
                run_together(served.denoiser, [repeat(call, rows)])
                took = time.monotonic() - started
            self._tell(Batch(served, rows, 1, took, is_warmup=True))
            return took

        limit = self._limits.of((served.model, served.profile, group_key(call)))
        if MEASURE_SECONDS / 10 < seconds < MEASURE_SECONDS:
            seconds = seconds_of(call.rows)  # the call before may have compiled
        if not limit.settled and seconds < MEASURE_SECONDS / 10:
            search = Search(seconds_of)
            search.run(MEASURE_SECONDS)
            limit.settle(search)
            log.info("%s/%s: %d rows a call (%s)", served.model, served.profile, limit.rows, _rates(search.rates))
        return limit.rows

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._beat = time.monotonic()
                if self._stopping:
                    return
                if not self._waiting:
                    self._changed.wait(IDLE_SECONDS)
                    continue
                self._wait_for_stragglers()
            with self._turns.take():
                with self._changed:
                    self._wait_for_stragglers()  # whoever had the turn before may come with a call now
                    batch = self._choose()
                if batch:
                    self._run(batch)

    def _wait_for_stragglers(self) -> None:
        while self._waiting and not self._stopping:
            now = time.monotonic()
            lead = self._order.sorted(self._waiting, now)[0]
            coming = self._between.values()
            times = [self._order.patience(coming, lead, now)]
            if (
                sum(ticket.call.rows for ticket in self._waiting if ticket.key == lead.key)
                < self._limits.of(lead.key).rows
            ):
                times += [one.until - now for one in coming if one.key == lead.key]
            if lead.task.background:  # whoever comes goes first
                times += [one.until - now for one in coming]
            if max(times) <= 0:
                return
            self._changed.wait(max(times))

    def _choose(self) -> list[Ticket]:
        """Takes the first call and, in order, those that fit with it up to the limit. Empty if all left."""
        if not self._waiting:
            return []
        lead, *others = self._order.sorted(self._waiting, time.monotonic())
        batch, rows, limit = [lead], lead.call.rows, self._limits.of(lead.key).rows
        for ticket in others:
            together = ticket.key == lead.key and ticket.task.background == lead.task.background
            if together and rows + ticket.call.rows <= limit:
                batch.append(ticket)
                rows += ticket.call.rows
        self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
        return batch

    def _run(self, batch: list[Ticket]) -> None:
        from pipelines.batch import run_together

        served, rows = batch[0].served, sum(ticket.call.rows for ticket in batch)
        started, before = time.monotonic(), served.denoiser.fallbacks
        try:
            outputs = run_together(served.denoiser, [ticket.call for ticket in batch])
        except Exception as error:  # noqa: BLE001  (whatever it is, it belongs to one job and must reach only that one)
            self._isolate(batch, error)
            return
        seconds = time.monotonic() - started
        limit = self._limits.of(batch[0].key)
        background = batch[0].task.background
        limit.seconds = seconds
        if rows <= MAX_ROWS and not background:
            limit.observe(rows, seconds)
        with self._changed:
            self._order.ran(batch[0], self._waiting, seconds)
        self._hand_back(batch, outputs, seconds)
        if not background:
            self._tell(Batch(served, rows, len(batch), seconds, fallbacks=served.denoiser.fallbacks - before))

    def _isolate(self, batch: list[Ticket], error: Exception) -> None:
        """Runs the calls of a failed batch one by one; a call that fails alone has earned its error."""
        if len(batch) == 1:
            batch[0].error = error
            batch[0].done.set()
            return
        log.warning("a batch of %d jobs failed and runs one by one: %r", len(batch), error)
        for ticket in batch:
            self._run([ticket])

    def _hand_back(self, batch: list[Ticket], outputs: list[Tensor], seconds: float) -> None:
        now = time.monotonic()
        until = now + max(STRAGGLER_SECONDS, STRAGGLER_SHARE * seconds)
        with self._changed:
            for ticket in batch:
                if not ticket.task.canceled and not ticket.task.background:
                    self._between[ticket.task] = Between(ticket.task, now, ticket.key, until)
        for ticket, output in zip(batch, outputs, strict=True):
            ticket.output = output
            ticket.done.set()


def _rates(rates: dict[int, float]) -> str:
    return ", ".join(f"{rows} rows: {rate:.1f}/s" for rows, rate in sorted(rates.items()))
