"""`--local`: the worker's own parts in this process, without queue, gateway or Redis. Knows no HTTP.

The same code makes the picture, so its bytes equal those of a job that ran alone on a server of this machine.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from halftone.images import Images, Picture, Video, video_file
from halftone.views import ModelView, ProfileView
from jobs.catalog import Catalog
from jobs.errors import UnknownModel
from jobs.files import ResultStore
from jobs.job import JobResult, new_job_id
from jobs.pareto import marked
from jobs.profile import FLOAT
from jobs.request import PARAMETERS, AnyRequest, VideoRequest
from service.admission import Admission, profiles_of
from service.answers import card_answer
from service.errors import from_validation
from service.settings import Settings as GatewaySettings
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from pipelines.denoiser import Denoiser
    from pipelines.load import Components
    from quant import Grow
    from workers.generate import Tools
    from workers.hub import Served

Step = Callable[[int, int], None]


def known_models() -> tuple[ModelView, ...]:
    """The models that a server of this machine would have."""
    cards = Catalog.scan(GatewaySettings.load()).models
    return tuple(ModelView.model_validate(card_answer(cards[name]).model_dump()) for name in sorted(cards))


def known_profiles() -> tuple[ProfileView, ...]:
    """The profiles that a server of this machine would have."""
    cards = Catalog.scan(GatewaySettings.load()).models
    found = [profile for name in sorted(cards) for profile in marked(profiles_of(cards[name]))]
    return tuple(ProfileView.model_validate(profile.model_dump()) for profile in found)


def decide(prompt: str, asked: dict[str, Any], catalog: Catalog, settings: GatewaySettings) -> AnyRequest:
    """The request that a gateway would queue; `asked` has the fields of POST /v1/jobs.

    Raises:
        InvalidRequest, UnknownModel, UnknownProfile: as the gateway does.
    """
    kind = PARAMETERS[asked.get("kind", "image")]
    try:
        parameters = kind.model_validate({"prompt": prompt, **asked})
    except ValidationError as fault:
        raise from_validation(fault.errors(), tuple(kind.model_fields)) from fault
    return asyncio.run(Admission(settings, catalog, no_workers, no_floor).decide(parameters))


def generate_here(prompt: str, asked: dict[str, Any], on_step: Step) -> Images | Video:
    """Makes pictures, or a video where its kind is asked for, in this process; `on_step`: (steps done, steps in all).

    Raises:
        HalftoneError: whatever a server would answer.
    """
    settings = GatewaySettings.load()
    catalog = Catalog.scan(settings)
    request = decide(prompt, asked, catalog, settings)
    with TemporaryDirectory(prefix="halftone-") as folder:
        store = ResultStore(Path(folder), settings.result_ttl_seconds)
        job_id = new_job_id()
        result = _run(request, job_id, store, catalog, on_step)
        if isinstance(request, VideoRequest):
            file = video_file(result.files)
            data = store.path_of(file.id).read_bytes()
            return Video(job_id, data, file, result.used, result.costs, result.notices)
        pictures = tuple(Picture(store.path_of(file.id).read_bytes(), file) for file in result.files)
    return Images(job_id, pictures, result.used, result.costs, result.notices)


def _run(request: AnyRequest, job_id: str, store: ResultStore, catalog: Catalog, on_step: Step) -> JobResult:
    from workers.generate import generate
    from workers.task import Assignment, Task

    with tools_here(catalog) as tools:
        return generate(Task(job_id, secrets.token_hex(8)), Assignment(request, store), tools, Steps(on_step))


@contextmanager
def tools_here(catalog: Catalog) -> Iterator[Tools]:
    """What a worker's child has, in this process."""
    from pipelines.load import quiet
    from workers.generate import Tools
    from workers.hub import Hub
    from workers.judges import Judges
    from workers.memory import PeakMeter
    from workers.residents import Residents
    from workers.turns import Turns

    quiet()
    settings = WorkerSettings.load()
    turns = Turns()
    hub = Hub(turns, _ignore)
    residents = Residents(OneShotLoader(catalog, settings), settings.memory_budget_bytes, _ignore)
    hub.start()
    try:
        yield Tools(residents, hub, turns, PeakMeter(), Judges(settings.lpips_dir, settings.clip_dir))
    finally:
        hub.stop()


class OneShotLoader:
    """Loads one profile for one job: nothing is warmed up or measured, for nothing comes after."""

    def __init__(self, catalog: Catalog, settings: WorkerSettings) -> None:
        self._catalog = catalog
        self._settings = settings

    def estimate(self, model: str, profile: str | None) -> int:
        """Bytes: nothing else is in memory, so whatever it takes is within the budget or the machine's."""
        return 0

    def components(self, model: str) -> Components:
        """What all profiles of the model share."""
        from pipelines.load import load_components
        from workers.engine import device_name
        from workers.loading import dtype_on

        folder = self._catalog.card(model).folder
        if folder is None:
            raise UnknownModel(f"model {model} has no folder on this machine", param="model")
        device = device_name()
        return load_components(folder, device=device, dtype=dtype_on(device, self._settings))

    def denoiser(self, model: str, profile: str, components: Components, grow: Grow, *, quick: bool = False) -> Served:
        """A profile's denoiser; it grows as it likes, as nothing else is in memory."""
        from workers.hub import Served
        from workers.residents import REFERENCE

        if profile.endswith(REFERENCE):
            from pipelines.featured import open_featured

            card = self._catalog.profile(model, profile.removesuffix(REFERENCE))
            return Served(model, profile, open_featured(card, components))
        return Served(model, profile, open_denoiser(self._catalog, model, profile, components, self._settings))


def open_denoiser(
    catalog: Catalog, model: str, profile: str, components: Components, settings: WorkerSettings
) -> Denoiser:
    """Reads a profile's denoiser into memory."""
    from pipelines.denoiser import TorchDenoiser
    from pipelines.load import load_denoiser
    from pipelines.quantized import load_profile

    if profile == FLOAT:
        return TorchDenoiser(FLOAT, load_denoiser(components))
    return load_profile(catalog.profile(model, profile), components, settings, backend=settings.backend)


class Steps:
    """Tells steps and nothing else of a job."""

    def __init__(self, on_step: Step) -> None:
        self._on_step = on_step

    def stepped(self, step: int, total: int) -> None:
        """Tells it."""
        self._on_step(step, total)

    def previewed(self, index: int, mime: str, b64: str) -> None:
        """Nobody looks at previews here."""

    def working(self) -> None:
        """Nobody waits for signs of life here."""

    def stage_took(self, stage: str, seconds: float, served: object) -> None:
        """The result's costs say it."""


async def no_workers() -> tuple[()]:
    """Asked by nobody: only the decision is used, not the admission."""
    return ()


def no_floor() -> None:
    """Likewise."""


def _ignore(told: object) -> None:
    """There are no metrics here."""
