"""The runs in the supervisor's hands: which wait, are in the child, or are being settled, and every move between.

Knows the channel's messages and the settler; has no loop of its own and never calls Redis itself. Everything here
happens on the event loop without waiting, so no two moves interleave.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from jobs.queue import JobQueue
from jobs.records import Claim
from workers.child import Cause, Death
from workers.messages import (
    Cancel,
    Canceled,
    Failed,
    Finished,
    JobMessage,
    Previewed,
    Run,
    Started,
    Stepped,
    ToChild,
    Working,
)
from workers.metrics import Metrics
from workers.running import Phase, Reports, Running
from workers.settle import Settler

log = logging.getLogger(__name__)


class Hands:
    """All leased runs. `send` reaches the child; `freed` is called whenever room may have appeared."""

    def __init__(
        self,
        queue: JobQueue,
        settler: Settler,
        metrics: Metrics,
        results_dir: Path,
        send: Callable[[ToChild], None],
        freed: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._settler = settler
        self._metrics = metrics
        self._results_dir = results_dir
        self._to_child = send
        self._freed = freed
        self._runs: dict[tuple[str, str], Running] = {}
        self._settling: set[asyncio.Task[None]] = set()
        self.open = False  # whether the child takes jobs
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def all(self) -> list[Running]:
        """Every run whose lease we hold, or held."""
        return list(self._runs.values())

    def in_phase(self, phase: Phase) -> list[Running]:
        """The runs that are there, oldest first."""
        return [run for run in self._runs.values() if run.phase is phase]

    def room(self, most: int) -> int:
        """How many more jobs the child can be given: none while one waits, or while a suspect runs alone."""
        if not self.open or self.in_phase(Phase.WAITING):
            return 0
        inside = self.in_phase(Phase.IN_CHILD)
        return 0 if any(run.claim.suspect for run in inside) else most - len(inside)

    def of_lane(self, lane: str) -> int:
        """How many jobs of a lane the child has, or will get."""
        return sum(run.claim.job.request.lane == lane for run in self._runs.values() if run.phase is not Phase.SETTLING)

    # ---- in --------------------------------------------------------------------------------------------------------

    def accept(self, claim: Claim) -> Running:
        """Hold a job that was just taken. An older run of it in our hands has lost its lease, or it were not here."""
        for older in [run for run in self._runs.values() if run.job_id == claim.job.id]:
            self.lose(older)
        run = Running(claim, Reports(self._queue, claim))
        self._runs[run.key] = run
        self.empty.clear()
        self.dispatch()
        return run

    def dispatch(self) -> None:
        """Hand waiting jobs to the child, in order; one that was there when a child died runs with no neighbours."""
        if not self.open:
            return
        inside = self.in_phase(Phase.IN_CHILD)
        for run in self.in_phase(Phase.WAITING):
            if inside and (run.claim.suspect or inside[0].claim.suspect):
                break
            self._hand_over(run)
            inside.append(run)
        self._metrics.running.set(len(inside))

    def _hand_over(self, run: Running) -> None:
        job = run.claim.job
        run.phase = Phase.IN_CHILD
        run.sent_at = run.moved_at = time.monotonic()
        queued = (job.started_at or job.created_at) - job.created_at
        self._to_child(
            Run(
                job_id=job.id,
                token=run.claim.token,
                request=job.request,
                results_dir=self._results_dir,
                queue_seconds=max(0.0, queued),
            )
        )

    # ---- on the way ------------------------------------------------------------------------------------------------

    def heard(self, message: JobMessage) -> bool:
        """Take in what the child says of a run. Returns whether it ended one by the child's own work."""
        run = self._runs.get((message.job_id, message.token))
        if run is None or run.phase is not Phase.IN_CHILD:
            return False
        if isinstance(message, Finished):
            self._end(run, self._settler.finished(run, message.result))
            return True
        if isinstance(message, Failed):
            self._end(run, self._settler.failed(run, message.failure))
            return True
        if isinstance(message, Canceled):
            self._end(run, self._settler.lost(run) if run.lost else self._settler.canceled(run))
            return True
        run.moved(stepped=isinstance(message, Stepped))
        if not run.lost:
            self._report(run, message)
        return False

    def _report(self, run: Running, message: JobMessage) -> None:
        if isinstance(message, Stepped):
            run.reports.step(message.step, message.total)
        elif isinstance(message, Previewed):
            run.reports.preview(message.index, message.mime, message.b64)
        elif not isinstance(message, Started | Working):
            raise TypeError(f"no run hears {type(message).__name__}")

    def lose(self, run: Running) -> None:
        """Somebody else has the job by now: stop our run of it."""
        if run.phase is Phase.SETTLING or run.lost:
            return
        log.warning("job %s: its lease is lost", run.job_id)
        self._metrics.leases_lost.inc()
        run.lost = True
        if run.phase is Phase.WAITING:
            self._end(run, self._settler.lost(run))
        else:
            self._stop(run)

    def cancel(self, run: Running) -> None:
        """Its user wants the job stopped."""
        if run.phase is Phase.WAITING:
            self._end(run, self._settler.canceled(run))
        elif run.phase is Phase.IN_CHILD and run.cancel_at is None:
            self._stop(run)

    def _stop(self, run: Running) -> None:
        run.cancel_at = run.cancel_at or time.monotonic()
        self._to_child(Cancel(job_id=run.job_id, token=run.claim.token))

    def forgive(self, seconds: float) -> None:
        """Take back `seconds` in which nobody listened."""
        for run in self._runs.values():
            run.sent_at += seconds
            run.moved_at += seconds
            run.cancel_at = None if run.cancel_at is None else run.cancel_at + seconds

    # ---- out -------------------------------------------------------------------------------------------------------

    def child_died(self, death: Death, culprits: frozenset[tuple[str, str]]) -> None:
        """The child is gone, and with it every run inside. After a crash all are suspect: later each runs alone."""
        self.open = False
        everyone = death.cause in {Cause.CRASH, Cause.OUT_OF_MEMORY}
        for run in self.in_phase(Phase.IN_CHILD):
            self._end(run, self._settler.bereaved(run, death, guilty=everyone or run.key in culprits))

    def give_back(self, run: Running, reason: str) -> None:
        """Return a job that the child never had."""
        self._end(run, self._settler.give_back(run, reason))

    async def settled(self, seconds: float) -> bool:
        """Wait until nothing is being settled; False when that took too long. Then leases end by themselves."""
        if not self._settling:
            return True
        _, late = await asyncio.wait(self._settling, timeout=seconds)
        for task in late:
            task.cancel()
        return not late

    def _end(self, run: Running, settling: Coroutine[None, None, None]) -> None:
        """The run is over: settle it beside everything else. Its lease is held until that is done."""
        run.phase = Phase.SETTLING
        task = asyncio.create_task(self._settle(run, settling))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        self.dispatch()
        self._freed()

    async def _settle(self, run: Running, settling: Coroutine[None, None, None]) -> None:
        try:
            await settling
        except Exception:  # one job's fault must not end the worker; its lease ends and others retry it
            log.exception("job %s could not be settled", run.job_id)
        finally:
            del self._runs[run.key]
            if not self._runs:
                self.empty.set()
