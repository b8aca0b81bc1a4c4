"""All policy on what is accepted: from a user's parameters to a decided request, or a fault. Knows no HTTP.

Nothing is clamped or dropped silently: what a model cannot do is refused with its limit, and what may surprise
(a word the model never saw, a size it was not trained at) comes back as a notice in the answer.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from jobs.catalog import Catalog
from jobs.errors import InvalidRequest, NoWorker
from jobs.job import Costs
from jobs.profile import FLOAT, ModelCard, ProfileCard
from jobs.records import WorkerInfo
from jobs.request import MAX_SEED, ImageParameters, ImageRequest, JobRequest, Notice
from service.settings import Settings

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_LOOK_SECONDS = 1.0
"""How long a look at the workers or the disk stands: a burst of requests costs one."""
NO_WORKER_RETRY_AFTER = 5.0


class CostBook:
    """What work costs here, learned from finished jobs: seconds per pixel-step by model and profile.

    The lowest rate among recent jobs that were not much smaller than the request: what small jobs take is mostly what
    every call costs, a first call of a shape compiles, and a job in company waits. Without such a job there is no
    estimate, and nothing is refused by it.
    """

    _RECENT = 64
    _COMPARABLE = 1 / 8
    """Share of a request's work that a job must have had to speak for it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[tuple[int, float]]] = {}

    def observe(self, request: JobRequest, costs: Costs) -> None:
        """Learn from one finished job."""
        if costs.denoise_seconds > 0:
            seen = self._seen.setdefault((request.model, request.profile), deque(maxlen=self._RECENT))
            seen.append((request.work, costs.denoise_seconds / request.work))

    def estimate(self, request: JobRequest) -> float | None:
        """Expected device seconds of a request; None when nothing like it has run yet."""
        seen = self._seen.get((request.model, request.profile), ())
        rates = [rate for work, rate in seen if work >= self._COMPARABLE * request.work]
        return min(rates) * request.work if rates else None


class Admission:
    """Decides requests. `workers` and `check_floor` (raises DiskFull) are its eyes; a look is good for a second."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        workers: Callable[[], Awaitable[Sequence[WorkerInfo]]],
        check_floor: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._workers = workers
        self._check_floor = check_floor
        self._seen_workers: tuple[float, Sequence[WorkerInfo]] | None = None
        self._disk_was_fine = float("-inf")
        self.costs = CostBook()

    async def admit(self, parameters: ImageParameters) -> ImageRequest:
        """A decided request that may be queued now.

        Raises UnknownModel, UnknownProfile or InvalidRequest (never heals), NoWorker or DiskFull (may heal).
        Whether the queue has room is decided by the queue itself, in the same script that enqueues.
        """
        request = self.resolve(parameters)
        self._check_cost(request)
        await self._look_at_disk()
        await self._check_worker(request)
        return request

    def resolve(self, parameters: ImageParameters) -> ImageRequest:
        """Fill what was left out from the model's card and hold the rest against its limits. Looks at nothing else."""
        card = self._catalog.card(parameters.model or self._settings.default_model)
        profile = self._catalog.profile(card.id, parameters.profile or FLOAT)
        width = parameters.width or card.defaults.width
        height = parameters.height or card.defaults.height
        _check_size(card, width, height)
        steps = parameters.num_inference_steps or card.defaults.num_inference_steps
        if steps > card.limits.max_steps:
            raise InvalidRequest(
                f"num_inference_steps: {card.id} takes at most {card.limits.max_steps}; got {steps}",
                param="num_inference_steps",
            )
        if parameters.output_compression is not None and parameters.output_format == "png":
            raise InvalidRequest(
                "output_compression: png is lossless and takes none; leave it out, or choose webp or jpeg",
                param="output_compression",
            )
        guidance = parameters.guidance_scale
        return ImageRequest(
            kind=parameters.kind,
            model=card.id,
            profile=profile.name,
            prompt=parameters.prompt,
            negative_prompt=parameters.negative_prompt,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=card.defaults.guidance_scale if guidance is None else guidance,
            seed=secrets.randbelow(MAX_SEED + 1) if parameters.seed is None else parameters.seed,
            n=parameters.n,
            output_format=parameters.output_format,
            output_compression=parameters.output_compression,
            previews=parameters.previews,
            priority=parameters.priority,
            notices=_notices(card, parameters, width, height),
        )

    def _check_cost(self, request: ImageRequest) -> None:
        bound = self._settings.max_job_seconds
        estimate = self.costs.estimate(request)
        if estimate is not None and estimate > bound:
            raise InvalidRequest(
                f"this request would take about {estimate:.0f} seconds; at most {bound:.0f} are allowed. "
                "Ask for fewer pixels, steps or pictures"
            )

    async def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now - self._disk_was_fine > _LOOK_SECONDS:
            await asyncio.to_thread(self._check_floor)
            self._disk_was_fine = now

    async def live_workers(self) -> Sequence[WorkerInfo]:
        """Workers whose heartbeat is alive, as seen within the last second."""
        now = time.monotonic()
        if self._seen_workers is None or now - self._seen_workers[0] > _LOOK_SECONDS:
            if self._seen_workers is not None:
                self._seen_workers = (now, self._seen_workers[1])  # one looks; the others go by the last look meanwhile
            self._seen_workers = (now, await self._workers())
        return self._seen_workers[1]

    async def _check_worker(self, request: ImageRequest) -> None:
        workers = await self.live_workers()
        if any(worker.serves(request.model, request.profile) for worker in workers):
            return
        self._seen_workers = None  # one may come any moment: look again at the next request
        what = f"model {request.model!r} with profile {request.profile!r}"
        message = f"no live worker serves {what}" if workers else "no worker is running"
        raise NoWorker(f"{message}; try again shortly", retry_after=NO_WORKER_RETRY_AFTER)


def _check_size(card: ModelCard, width: int, height: int) -> None:
    limits = card.limits
    for name, side in (("width", width), ("height", height)):
        if not limits.min_side <= side <= limits.max_side:
            raise InvalidRequest(
                f"{name}: {card.id} makes {limits.min_side} to {limits.max_side} pixels; got {side}", param=name
            )
        if side % limits.multiple_of:
            raise InvalidRequest(
                f"{name}: {card.id} needs a multiple of {limits.multiple_of} pixels; got {side}", param=name
            )
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"width, height: {card.id} makes at most {limits.max_pixels} pixels; {width}x{height} are {width * height}",
            param="width",
        )


def _notices(card: ModelCard, parameters: ImageParameters, width: int, height: int) -> tuple[Notice, ...]:
    notices: list[Notice] = []
    unknown = _unknown_words(card, f"{parameters.prompt} {parameters.negative_prompt}")
    if unknown:
        listed = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        message = f"{card.id} does not know these words: {listed}. Its vocabulary is at /v1/models/{card.id}"
        notices.append(Notice(code="unknown_words", message=message))
    if card.trained_sizes and (width, height) not in card.trained_sizes:
        sizes = ", ".join(f"{w}x{h}" for w, h in card.trained_sizes)
        message = f"{card.id} was trained at {sizes}; {width}x{height} may look worse"
        notices.append(Notice(code="untrained_size", message=message))
    return tuple(notices)


def _unknown_words(card: ModelCard, text: str) -> list[str]:
    if card.vocabulary is None:
        return []
    known = {word.casefold() for word in card.vocabulary}
    words = dict.fromkeys(word.casefold()[:40] for word in _WORD.findall(text))
    return [word for word in words if word not in known]


def profiles_of(card: ModelCard) -> list[ProfileCard]:
    """A model's profiles, `float` first."""
    return sorted(card.profiles, key=lambda profile: (profile.name != FLOAT, profile.name))
