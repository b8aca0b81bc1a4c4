"""`halftone quantize`: artifacts made of models; and how commands find a model and what its pictures are of.

Knows no server. Importing it imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import quant
from halftone.hub import REPO, pull_model, pulled
from halftone.views import ProfileView
from jobs.catalog import Catalog
from jobs.errors import HalftoneError, InvalidRequest, UnknownModel
from jobs.manifest import Manifest
from jobs.profile import ModelCard
from pipelines.families import Subject
from pipelines.load import quiet
from pipelines.order import QuantizationOrder, quantize_folder
from pipelines.subjects import asks_of
from workers.settings import WorkerSettings
from zoo.shapes.captions import VOCABULARY
from zoo.shapes.motion_captions import VOCABULARY as MOTION_VOCABULARY
from zoo.worlds import Asked, World, world_of

CALIBRATION_SAMPLES = 64
LEARNING_SAMPLES = 256
CAPTIONS_SEED = 2026
"""Of the shapes world's captions that models which know it are calibrated on."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    """A new artifact: its folder, the profile it gives, and how many layers stayed float for which reason."""

    folder: Path
    card: ProfileView
    kept_float: dict[str, int]


@dataclass(frozen=True)
class Found:
    """A model: its card, its folder, and a catalog that has it."""

    card: ModelCard
    folder: Path
    catalog: Catalog


@dataclass(frozen=True)
class Chosen:
    """What pictures are to be of; `asked` says what is wrong with what is made of prompts, where we chose them."""

    subjects: list[Subject]
    asked: dict[str, Asked]


def quantize_model(
    model: str,
    recipe: str,
    prompts: Sequence[str] | None,
    out: Path | None,
    progress: Progress,
    *,
    samples: int | None = None,
    seed: int = 0,
    fast: bool = False,
) -> Made:
    """Quantizes a model's denoiser and writes the artifact, by default where a server of this data folder looks.

    Calibrates on `samples` pictures at most: of the prompts, or of 64 subjects of the model's own, 256 where the recipe
    learns rounding. `fast` rounds weights to nearest where the recipe learns it.

    Raises:
        HalftoneError: the model, the recipe, the prompts or the weights are at fault; the message says how.
    """
    quiet()
    settings = WorkerSettings.load()
    found = find_model(model, settings, progress)
    with library_faults():
        plan = quant.load_recipe(recipe)
        plan = plan.fast() if fast else plan
    count = LEARNING_SAMPLES if plan.learns else CALIBRATION_SAMPLES
    chosen = choose_subjects(found, prompts, samples, count, unseen=False)
    with library_faults():
        place = out or settings.artifacts_dir / found.card.id / plan.name
        order = QuantizationOrder(
            folder=found.folder,
            out=place,
            recipe=plan,
            subjects=chosen.subjects,
            defaults=found.card.defaults,
            model=found.card.id,
            seed=seed,
        )
        written = quantize_folder(order, progress)
    manifest = Manifest.read(written)
    reasons = Counter(str(layer.get("kept_float_because")) for layer in manifest.layers if not layer.get("scheme"))
    profile = ProfileView.model_validate(manifest.card(place).model_dump())
    return Made(place, profile, dict(reasons.most_common()))


def find_model(model: str, settings: WorkerSettings, progress: Progress) -> Found:
    """A model by its folder, by its id, or, where it is neither, by its repository on the hub, which is pulled first.

    Raises:
        InvalidRequest: there is none, or its folder is broken; the message says how.
        Unavailable: the hub cannot be reached, or has no such repository.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() and REPO.fullmatch(model):
        progress(f"pulling {model}", 0, 1)
        folder = pulled(model) or pull_model(model, None, None)
    catalog = Catalog.scan(settings)
    if folder.is_dir() and _card_of(catalog, folder) is None:
        catalog = Catalog.scan(settings.model_copy(update={"models": (*settings.models, folder.absolute())}))
        if _card_of(catalog, folder) is None and model not in catalog.models:
            faults = "; ".join(fault for fault in catalog.faults if str(folder.absolute()) in fault)
            raise InvalidRequest(f"{model} cannot be used: {faults}", param="model")
    card = _card_of(catalog, folder) or catalog.card(model)
    if card.folder is None:
        raise UnknownModel(f"model {card.id} has no weights", param="model")
    return Found(card, card.folder, catalog)


def _card_of(catalog: Catalog, folder: Path) -> ModelCard | None:
    return next((card for card in catalog.models.values() if card.folder == folder.absolute()), None)


def choose_subjects(
    found: Found, prompts: Sequence[str] | None, samples: int | None, otherwise: int, *, unseen: bool
) -> Chosen:
    """The first `samples` of the prompts, all without a number; or so many of the model's own, `otherwise` without one.

    Raises:
        InvalidRequest: the model takes no prompts and was given some, or needs some and has none of its own, or a line
            names no class.
        UnsupportedModel: the pipeline makes pictures of something else.
    """
    asks = asks_of(found.folder)
    if prompts:
        return Chosen(asks.read(prompts)[:samples], {})
    count = samples or otherwise
    world = world_spoken(found.card) if asks.kind == "prompt" else None
    if world is not None and unseen:
        asked = world.asked(count)
        return Chosen([one.prompt for one in asked], {one.prompt: one for one in asked})
    if world is not None:
        return Chosen(list(world.captions(count, CAPTIONS_SEED)), {})
    return Chosen(asks.spread(count), {})


def world_spoken(card: ModelCard) -> World | None:
    """Which shapes world a model knows every word of, of pictures or of films; None where it is neither."""
    words = MOTION_VOCABULARY if card.kind == "video" else VOCABULARY
    return world_of(card.defaults) if card.vocabulary is not None and set(words) <= set(card.vocabulary) else None


@contextmanager
def library_faults() -> Iterator[None]:
    """The quantization library's faults, which know nothing of ours, as faults for a user."""
    try:
        yield
    except quant.QuantError as fault:
        raise HalftoneError(str(fault)) from fault
