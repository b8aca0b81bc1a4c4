"""The quality guard in the device child: keeps a share of finished pictures, and compares them while nobody is here.

Decides when; what a comparison measures is `workers.replay`'s, what it means is decided by whoever hears of it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from jobs.catalog import Catalog
from jobs.guard_record import Comparison, comparison
from jobs.profile import FLOAT, ProfileCard
from jobs.request import GenerationRequest
from jobs.spread import Spread, setting_of
from pipelines.featured import Featured
from pipelines.session import Order
from workers.hub import Hub
from workers.messages import Compared, FromChild, GuardSkipped, SkipReason
from workers.presence import Presence
from workers.replay import Gate, Preempted, ReplaySeams, Sample, anchored, features_excess, replayed
from workers.residents import REFERENCE, Lease, NoRoom, Residents
from workers.settings import WorkerSettings
from workers.task import JobCanceledSignal, Task
from workers.turns import Turns

log = logging.getLogger(__name__)

RECHECKS = 24
LATER_RECHECKS = 8
"""With so many of a build's comparisons, from a process's first, something of its own is measured again; then with
every eighth."""


class Guard:
    """Samples finished jobs and replays them on a thread of its own. `tell` gets what is found."""

    def __init__(
        self,
        settings: WorkerSettings,
        catalog: Catalog,
        residents: Residents,
        hub: Hub,
        turns: Turns,
        users: Presence,
        tell: Callable[[FromChild], None],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._residents = residents
        self._hub = hub
        self._turns = turns
        self._users = users
        self._tell = tell
        self._changed = threading.Condition()
        self._samples: deque[Sample] = deque()
        self._task: Task | None = None
        self._compared: Counter[str] = Counter()
        self._features: dict[str, float] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="guard", daemon=True)

    def start(self) -> None:
        """Starts the thread; without a share there is nothing to do for it."""
        if self._settings.guard_share > 0:
            self._thread.start()

    def stop(self) -> None:
        """Gives up what is being compared and waits for the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            if self._task is not None:
                self._task.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def offer(
        self, job_id: str, request: GenerationRequest, order: Order, pictures: Tensor, latents: Tensor | None
    ) -> None:
        """Takes one of a finished job's pictures [n, 3, H, W], or videos [n, F, 3, H, W], and its latents [n, ...],
        where the job is in the sample.

        Which jobs and which of their pictures is decided by the job's id, so that a job that runs twice counts once.
        """
        drawn = hashlib.sha256(job_id.encode()).digest()
        if int.from_bytes(drawn[:8]) >= self._settings.guard_share * 2**64 or request.profile == FLOAT:
            return
        index = drawn[8] % len(order.seeds)
        sample = Sample(
            job_id,
            request,
            replace(order, seeds=[order.seeds[index]]),
            pictures[index].clone(),
            None if latents is None else latents[index].detach().to("cpu").float().clone(),
        )
        self._keep(sample)

    def _keep(self, sample: Sample) -> None:
        with self._changed:
            held = sum(kept.bytes for kept in self._samples)
            if held + sample.bytes <= self._settings.guard_bytes:
                self._samples.append(sample)
                self._changed.notify_all()
                return
        self._skip(sample, "full")

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._samples and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                sample = self._samples[0]
                self._task = Task(f"guard-{sample.id}", background=True)
            try:
                self._compare(sample, self._task)
            finally:
                self._hub.leave(self._task)
                with self._changed:
                    self._samples.popleft()

    def _compare(self, sample: Sample, task: Task) -> None:
        gate = Gate(self._users, self._residents, self._turns, task)
        try:
            comparison = self._comparison(sample, gate)
        except NoRoom as fault:
            log.info("guard: %s: no memory to spare: %s", sample.id, fault)
            self._skip(sample, "memory", gate)
        except Preempted:
            self._skip(sample, "preempted", gate)
        except JobCanceledSignal:
            log.info("guard: %s: the worker stops", sample.id)
        except Exception:  # whatever it is, it is the guard's own and must not reach the jobs
            log.exception("guard: %s could not be compared", sample.id)
            self._skip(sample, "failed", gate)
        else:
            self._tell(Compared(comparison=comparison))

    def _comparison(self, sample: Sample, gate: Gate) -> Comparison:
        request = sample.request
        card = self._catalog.profile(request.model, request.profile)
        usual = setting_of(self._catalog.card(request.model).defaults)
        gate.wait()
        with (
            self._residents.lease(request.model, FLOAT, gate.task) as truth,
            self._residents.lease(request.model, request.profile, gate.task) as own,
        ):
            seams = ReplaySeams(gate, self._hub, truth.served, own.served)
            measured = replayed(sample, truth.components, seams)
            excess = self._recheck(card, truth, own, gate)
        return comparison(card, usual, sample.id, setting_of(request), measured, excess, gate.seconds)

    def _recheck(self, card: ProfileCard, truth: Lease, own: Lease, gate: Gate) -> float | None:
        """Measures again a picture of the build, and once a process its temporal features; None where not due."""
        spread = None if card.fidelity is None else card.fidelity.spread
        number = self._compared[card.build]
        self._compared[card.build] += 1
        if spread is None or not spread.anchors or not (number < RECHECKS or number % LATER_RECHECKS == 0):
            return None
        seams = ReplaySeams(gate, self._hub, truth.served, own.served, decodes=False)
        excess = anchored(spread, number, truth.components, seams)
        if spread.temporal_error and card.build not in self._features:
            self._look_at_features(card, spread, seams)
        return max(excess, self._features.get(card.build, 0.0))

    def _look_at_features(self, card: ProfileCard, spread: Spread, seams: ReplaySeams) -> None:
        """Measures an artifact's temporal features, where there is room to open it; else it is tried again later."""
        seams.gate.wait()
        try:
            with self._residents.lease(card.model, card.name + REFERENCE, seams.gate.task) as opened:
                featured = opened.served.denoiser
                if not isinstance(featured, Featured):
                    raise TypeError(f"{card.name} was opened as {type(featured).__name__}")
                self._features[card.build] = features_excess(featured, spread, seams)
        except NoRoom as fault:
            log.info("guard: features of %s/%s are not looked at yet: %s", card.model, card.name, fault)

    def _skip(self, sample: Sample, reason: SkipReason, gate: Gate | None = None) -> None:
        request = sample.request
        spent = 0.0 if gate is None else gate.seconds
        self._tell(GuardSkipped(model=request.model, profile=request.profile, reason=reason, seconds=spent))
