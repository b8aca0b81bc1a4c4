"""The supervisor: takes jobs as its device child has room, keeps their leases, watches the child, and drains.

Knows the queue and when things happen; what happens to a run is in hands.py. It imports nothing heavy and answers
within milliseconds whatever the device does, because leases hang on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from jobs.claims import MAX_WAIT_SECONDS
from jobs.errors import Unavailable
from jobs.files import ResultStore
from jobs.queue import JobQueue
from jobs.records import WorkerInfo
from workers.child import DEVICE_COMMAND, Death
from workers.hands import Hands
from workers.keeper import ChildKeeper
from workers.messages import Compared, FromChild, JobMessage, Ready
from workers.metrics import Metrics
from workers.running import Phase
from workers.settings import WorkerSettings
from workers.settle import Settler
from workers.sweep import Sweeper
from workers.verdicts import Verdicts
from workers.watchdog import judge

VIDEO = "video"
"""The lane of long jobs."""
LATE_SECONDS = 1.0
"""A loop that wakes this late says that the supervisor itself stood still, not the child."""
AWAY_SECONDS = 0.1
"""Pause after a call to an absent Redis, on top of the client's own retries."""
LAST_SETTLES_SECONDS = 10.0

log = logging.getLogger(__name__)


class Supervisor:
    """One worker process: `run()` until `drain()`."""

    def __init__(
        self,
        queue: JobQueue,
        files: ResultStore,
        settings: WorkerSettings,
        metrics: Metrics,
        command: Sequence[str] = DEVICE_COMMAND,
    ) -> None:
        self.name = f"{settings.worker_name}-{os.getpid()}-{secrets.token_hex(3)}"
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._work = asyncio.Event()  # something may be taken
        self._renewal = asyncio.Event()  # leases are to be looked at now
        self._news = asyncio.Event()  # something about this worker changed that others want to know
        self._draining = asyncio.Event()
        self._at_once = asyncio.Event()
        self._started_at = time.time()
        self._culprits: frozenset[tuple[str, str]] = frozenset()
        # what the last child could run; kept while it is replaced, because the next one can run the same
        self._profiles: dict[str, tuple[str, ...]] = {}
        self._keeper = ChildKeeper(command, settings.last_words_seconds, metrics, self._heard, self._died)
        self._sweeper = Sweeper(queue, files, grace=settings.lease_seconds)
        self._verdicts = Verdicts(queue.guard, metrics)
        settler = Settler(queue, files, self._sweeper, metrics, settings)
        self._hands = Hands(queue, settler, metrics, settings.results_dir, self._keeper.send, self._work.set)

    # ---- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `drain()`, then end what runs, stop the child, and return."""
        third = self._settings.heartbeat_seconds
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(self._keeper.run())
            taking = group.create_task(self._take_loop())
            loops = [
                group.create_task(self._listen_loop()),
                group.create_task(self._watch_loop()),
                group.create_task(self._verdicts.run()),
                group.create_task(self._every(third, self._renew, sooner=self._renewal)),
                group.create_task(self._every(third, self._beat, sooner=self._news)),
                group.create_task(self._every(min(5.0, third), self._reap)),
                group.create_task(self._every(self._settings.sweep_seconds, self._sweeper.sweep)),
            ]
            await self._draining.wait()
            await self._finish(taking, keeping)
            for loop in loops:
                loop.cancel()

    def drain(self) -> None:
        """Stop taking and finish what runs; called twice, give it back at once."""
        if self._draining.is_set():
            self._at_once.set()
        log.info("draining: %d jobs in hand", len(self._hands))
        self._draining.set()
        self._work.set()

    async def _finish(self, taking: asyncio.Task[None], keeping: asyncio.Task[None]) -> None:
        """End all runs: by themselves until the deadline, then by giving them back."""
        await self._attempt(self._beat)
        hurry = asyncio.create_task(self._at_once.wait())
        done = asyncio.create_task(self._until_empty(taking))
        await asyncio.wait({done, hurry}, timeout=self._settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (done, hurry, taking):
            task.cancel()
        await self._keeper.stop(keeping, at_once=bool(self._hands.in_phase(Phase.IN_CHILD)))
        if not await self._hands.settled(LAST_SETTLES_SECONDS):
            log.error("jobs could not be settled before the end; their leases will end by themselves")
        await self._attempt(self._farewell)

    async def _farewell(self) -> None:
        await self._queue.farewell(self.name)

    async def _until_empty(self, taking: asyncio.Task[None]) -> None:
        await asyncio.wait({taking})
        for run in self._hands.in_phase(Phase.WAITING):
            self._hands.give_back(run, "drain")
        await self._hands.empty.wait()

    # ---- the child -------------------------------------------------------------------------------------------------

    def _heard(self, message: FromChild) -> None:
        if isinstance(message, JobMessage):
            if self._hands.heard(message):
                self._keeper.proved()
        elif isinstance(message, Compared):
            self._verdicts.heard(message.comparison)
        elif isinstance(message, Ready):
            self._profiles = message.profiles
            self._news.set()
            self._hands.open = True
            self._hands.dispatch()
            self._work.set()

    def _died(self, death: Death) -> None:
        culprits, self._culprits = self._culprits, frozenset()
        self._hands.child_died(death, culprits)

    async def _watch_loop(self) -> None:
        pause = min(0.25, self._settings.alive_seconds / 4)
        woke = time.monotonic()
        while True:
            await asyncio.sleep(pause)
            late, woke = time.monotonic() - woke - pause, time.monotonic()
            if late > LATE_SECONDS:
                # whoever did not listen cannot blame the child for silence; but leases may be gone
                log.warning("the supervisor stood still for %.1f s", late)
                self._keeper.forgive(late)
                self._hands.forgive(late)
                self._renewal.set()
            elif (vitals := self._keeper.vitals(woke)) is not None:
                verdict = judge(vitals, self._hands.all, woke, self._settings)
                if verdict is not None:
                    self._culprits = verdict.culprits
                    self._keeper.end(verdict.death)

    # ---- the queue -------------------------------------------------------------------------------------------------

    async def _take_loop(self) -> None:
        while not self._draining.is_set():
            await self._work.wait()
            self._work.clear()
            if not await self._attempt(self._take):
                await asyncio.sleep(AWAY_SECONDS)
                self._work.set()

    async def _take(self) -> None:
        """Take until the queue is empty or the child is full."""
        while not self._draining.is_set() and (room := self._hands.room(self._settings.max_running)) > 0:
            claims = await self._queue.take(self.name, *self._wanted(room))
            if not claims:
                return
            for claim in claims:
                self._hands.accept(claim)

    def _wanted(self, room: int) -> tuple[int, tuple[str, ...]]:
        """How many jobs to take at most, and of which lanes: videos never fill all room, or pictures would queue up."""
        lanes = self._settings.lanes
        videos = self._settings.max_running_videos - self._hands.of_lane(VIDEO)
        if VIDEO not in lanes or videos >= room:
            return room, lanes
        return (videos, lanes) if videos > 0 else (room, tuple(lane for lane in lanes if lane != VIDEO))

    async def _listen_loop(self) -> None:
        """Wait for the doorbell: something was queued, or somebody wants a job stopped."""
        while True:
            if not await self._attempt(self._listen):
                await asyncio.sleep(AWAY_SECONDS)

    async def _listen(self) -> None:
        canceled = await self._queue.wait(MAX_WAIT_SECONDS)
        self._work.set()
        for run in self._hands.all:
            if run.job_id in canceled:
                self._hands.cancel(run)

    async def _renew(self) -> None:
        """Keep the leases, and learn which are lost and which jobs should stop."""
        held = {run.job_id: run for run in self._hands.all if not run.lost}
        if not held:
            return
        renewal = await self._queue.renew([run.claim for run in held.values()])
        for job_id in renewal.lost:
            self._hands.lose(held[job_id])
        for job_id in renewal.canceled - renewal.lost:
            self._hands.cancel(held[job_id])

    async def _beat(self) -> None:
        """Tell all who ask what this worker can do."""
        state = self._state()
        inside = len(self._hands.in_phase(Phase.IN_CHILD))
        info = WorkerInfo(
            name=self.name,
            state=state,
            lanes=self._settings.lanes,
            models=tuple(self._profiles),
            profiles=self._profiles,
            device=self._keeper.device,
            running=inside,
            room=max(0, self._settings.max_running - inside),
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=self._started_at,
        )
        await self._queue.heartbeat(self.name, info)
        self._metrics.up.clear()
        self._metrics.up.labels(self._settings.worker_name, self._keeper.device).set(state == "ready")
        self._metrics.heartbeat.set_to_current_time()

    def _state(self) -> Literal["starting", "ready", "draining"]:
        if self._draining.is_set():
            return "draining"
        return "ready" if self._keeper.ready else "starting"

    async def _reap(self) -> None:
        """Put back what other workers dropped."""
        if returned := await self._queue.reap(self.name):
            log.warning("%d jobs whose lease had ended go back to the queue", returned)
            self._metrics.retried.labels("lease").inc(returned)

    # ---- patience --------------------------------------------------------------------------------------------------

    async def _every(
        self, seconds: float, action: Callable[[], Awaitable[None]], sooner: asyncio.Event | None = None
    ) -> None:
        """Act now, then at least every `seconds`, and whenever `sooner` is set."""
        cause = sooner or asyncio.Event()
        while True:
            await self._attempt(action)
            with contextlib.suppress(TimeoutError):
                # workers must not march in step
                async with asyncio.timeout(seconds * random.uniform(0.8, 1.0)):  # noqa: S311
                    await cause.wait()
            cause.clear()

    async def _attempt(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Call Redis; False when it is away, which is a reason to try again, never to give up."""
        try:
            await action()
        except Unavailable as error:
            log.warning("%s: Redis is away: %s", action.__name__, error)
            return False
        return True
