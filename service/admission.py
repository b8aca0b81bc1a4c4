"""All policy on what is accepted now: cost, disk and workers, after the model's card has had its say. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, overload

from jobs.catalog import Catalog
from jobs.errors import InvalidRequest, NoWorker
from jobs.guard_record import GuardRecord
from jobs.profile import FLOAT, ModelCard, ProfileCard
from jobs.records import WorkerInfo
from jobs.request import (
    AnyParameters,
    AnyRequest,
    GenerationRequest,
    ImageParameters,
    ImageRequest,
    JobRequest,
    Kind,
    Parameters,
)
from service.choice import Records, choose, guarded, notice_of, promises
from service.costs import CostBook
from service.resolve import Resolver
from service.settings import Settings

_LOOK_SECONDS = 1.0
"""How long a look at the workers, the guard or the disk stands: a burst of requests costs one."""
NO_WORKER_RETRY_AFTER = 5.0

T = TypeVar("T")


class _Look(Generic[T]):
    """What was seen within the last second. Who comes while one looks waits for the same look."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._began = 0.0
        self._task: asyncio.Future[T] | None = None

    async def seen(self) -> T:
        now = time.monotonic()
        if self._task is None or (self._task.done() and (now - self._began > _LOOK_SECONDS or _in_vain(self._task))):
            self._began, self._task = now, asyncio.ensure_future(self._look())
        return await asyncio.shield(self._task)

    def forget(self) -> None:
        """Look again at the next request."""
        self._task = None


def _in_vain(task: asyncio.Future[T]) -> bool:
    return task.cancelled() or task.exception() is not None


async def _no_records() -> Sequence[GuardRecord]:
    return ()


class Admission:
    """Decides requests. `workers` and `check_floor` (raises DiskFull) are its eyes; a look is good for a second.

    Attributes:
        resolve: decides a request by the model's card alone.
        costs: what is known of how long jobs take here.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        workers: Callable[[], Awaitable[Sequence[WorkerInfo]]],
        check_floor: Callable[[], None],
        guard: Callable[[], Awaitable[Sequence[GuardRecord]]] = _no_records,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        defaults: dict[Kind, str] = {"image": settings.default_model, "video": settings.default_video_model}
        self.resolve = Resolver(catalog, defaults, settings.max_video_pixels)
        self._workers = _Look(workers)
        self._records = _Look(guard)
        self._check_floor = check_floor
        self._disk_was_fine = float("-inf")
        self.costs = CostBook()

    async def admit(self, parameters: AnyParameters) -> AnyRequest:
        """A decided request that may be queued now.

        Raises UnknownModel, UnknownProfile or InvalidRequest (never heals), NoWorker or DiskFull (may heal).
        Whether the queue has room is decided by the queue itself, in the same script that enqueues.
        """
        request = await self.decide(parameters)
        self._check_cost(request)
        await self._look_at_disk()
        await self._check_worker(request)
        return request

    @overload
    async def decide(self, parameters: ImageParameters) -> ImageRequest: ...
    @overload
    async def decide(self, parameters: AnyParameters) -> AnyRequest: ...

    async def decide(self, parameters: AnyParameters) -> AnyRequest:
        """By the model's card, what was promised, and the guard's verdicts; looks at no disk and needs no worker.

        Raises PromiseUnmet, ProfileFailed, and what the card refuses.
        """
        if not isinstance(parameters, Parameters):
            return self.resolve(parameters)  # a comparison names all its profiles, failed ones too
        promised = promises(parameters)
        request = self.resolve(parameters.model_copy(update={"profile": FLOAT}) if promised else parameters)
        if not isinstance(request, GenerationRequest):
            raise TypeError(f"a request of kind {request.kind} chooses no profile")
        records, model = await self.guard_records(), self._catalog.card(request.model)
        if not promised:
            card, notice = guarded(
                self._catalog.profile(model.id, request.profile), model, records, self._settings.guard_action
            )
            notices = request.notices if notice is None else (*request.notices, notice)
            return request.model_copy(update={"profile": card.name, "notices": notices})
        served = await self._served(model)
        confidence = self._settings.promise_confidence
        choice = choose(parameters, request, served, records, self.costs.estimate, confidence)
        notices = (*request.notices, notice_of(choice))
        return request.model_copy(update={"profile": choice.profile, "notices": notices, "choice": choice})

    async def _served(self, model: ModelCard) -> ModelCard:
        """The model with those of its profiles that live workers serve; with all where none serves any."""
        workers = await self.live_workers()
        profiles = [card for card in model.profiles if any(worker.serves(model.id, card.name) for worker in workers)]
        return model.model_copy(update={"profiles": tuple(profiles)}) if profiles else model

    async def guard_records(self) -> Records:
        """What the guard knows, as seen within the last second."""
        return {record.key: record for record in await self._records.seen()}

    def forget_records(self) -> None:
        """Something of the guard was changed here: look again at the next request."""
        self._records.forget()

    def _check_cost(self, request: JobRequest) -> None:
        bound = self._settings.max_video_seconds if request.lane == "video" else self._settings.max_job_seconds
        estimate = self.costs.estimate(request)
        if estimate is not None and estimate > bound:
            raise InvalidRequest(
                f"this request would take about {estimate:.0f} seconds; at most {bound:.0f} are allowed. "
                "Ask for fewer pixels, steps, pictures or frames"
            )

    async def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now - self._disk_was_fine > _LOOK_SECONDS:
            await asyncio.to_thread(self._check_floor)
            self._disk_was_fine = now

    async def live_workers(self) -> Sequence[WorkerInfo]:
        """Workers whose heartbeat is alive, as seen within the last second."""
        return await self._workers.seen()

    async def _check_worker(self, request: JobRequest) -> None:
        workers = await self.live_workers()
        if any(all(worker.serves(request.model, name, request.lane) for name in request.needs) for worker in workers):
            return
        self._workers.forget()  # one may come any moment: look again at the next request
        what = f"model {request.model!r} with profile {' and '.join(map(repr, request.needs))}"
        if any(all(worker.serves(request.model, name) for name in request.needs) for worker in workers):
            what += f" and takes from lane {request.lane!r} (HALFTONE_LANES)"
        message = f"no live worker serves {what}" if workers else "no worker is running"
        raise NoWorker(f"{message}; try again shortly", retry_after=NO_WORKER_RETRY_AFTER)


def profiles_of(card: ModelCard) -> list[ProfileCard]:
    """A model's profiles, `float` first."""
    return sorted(card.profiles, key=lambda profile: (profile.name != FLOAT, profile.name))
