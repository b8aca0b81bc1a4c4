"""`halftone quantize` and `evaluate`: artifacts made of models, and profiles held against float. Knows no server.

Importing it imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import quant
from halftone.local import open_denoiser
from halftone.views import ProfileView
from jobs.catalog import Catalog
from jobs.errors import HalftoneError, InvalidRequest, UnknownModel
from jobs.manifest import Manifest
from jobs.profile import FLOAT, ModelCard
from pipelines.fidelity import Checker, ProfileFidelity, evaluate
from pipelines.load import load_components, quiet
from pipelines.quantized import quantize_folder
from workers.settings import WorkerSettings
from zoo.shapes.captions import VOCABULARY, caption
from zoo.shapes.checker import faults
from zoo.shapes.world import Scene, random_scene

CALIBRATION_PROMPTS = 64
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Made:
    """A new artifact: its folder, the profile it gives, and how many layers stayed float for which reason."""

    folder: Path
    card: ProfileView
    kept_float: dict[str, int]


@dataclass(frozen=True)
class Row:
    """One profile against float on the same prompts and seeds; seconds per picture."""

    profile: str
    prompts: int
    psnr_db: float
    ssim: float
    latent_error: float
    prompt_accuracy: float | None
    weights_bytes: int
    float_weights_bytes: int
    seconds: float

    def cells(self) -> list[str]:
        """As a table's cells, under COLUMNS."""
        right = "-" if self.prompt_accuracy is None else f"{100 * self.prompt_accuracy:.1f}"
        share = 100 * self.weights_bytes / max(1, self.float_weights_bytes)
        numbers = [f"{self.psnr_db:.1f}", f"{self.ssim:.4f}", right, f"{self.weights_bytes / 1e6:.1f}", f"{share:.0f}"]
        return [self.profile, str(self.prompts), *numbers, f"{self.seconds:.2f}"]


COLUMNS = ("profile", "prompts", "PSNR dB", "SSIM", "prompt accuracy %", "weights MB", "of float %", "seconds")


def quantize_model(
    model: str, recipe: str, prompts: Sequence[str] | None, out: Path | None, progress: Progress
) -> Made:
    """Quantizes a model's denoiser and writes the artifact, by default where a server of this data folder looks.

    Raises:
        HalftoneError: the model, the recipe or the weights are at fault; the message says how.
    """
    settings = WorkerSettings.load()
    card, folder, _ = _find(model, settings)
    lines = prompts or [prompt for prompt, _ in _own_prompts(card, CALIBRATION_PROMPTS, unseen=False)]
    with _told():
        chosen = quant.load_recipe(recipe)
        place = out or settings.artifacts_dir / card.id / chosen.name
        place.parent.mkdir(parents=True, exist_ok=True)
        written = quantize_folder(folder, place, chosen, lines, card.defaults, model=card.id, progress=progress)
    manifest = Manifest.read(written)
    reasons = Counter(str(layer.get("kept_float_because")) for layer in manifest.layers if not layer.get("scheme"))
    profile = ProfileView.model_validate(manifest.card(place).model_dump())
    return Made(place, profile, dict(reasons.most_common()))


def evaluate_model(
    model: str, profiles: Sequence[str] | None, prompts: Sequence[str] | None, limit: int, progress: Progress
) -> list[Row]:
    """Draws prompts by each profile and by float at the same seeds, and compares; `float` is always the first row.

    Raises:
        HalftoneError: the model or a profile does not exist, or cannot be run.
    """
    quiet()
    settings = WorkerSettings.load()
    card, folder, catalog = _find(model, settings)
    wanted = profiles or [profile.name for profile in card.profiles]
    names = [FLOAT, *(name for name in dict.fromkeys(wanted) if name != FLOAT)]
    cards = {name: catalog.profile(card.id, name) for name in names}
    own = {} if prompts else dict(_own_prompts(card, limit, unseen=True))
    lines = list(prompts or own)[:limit]
    with _told():
        components = load_components(folder)
        denoisers = {name: open_denoiser(catalog, card.id, name, components, settings) for name in names}
        checker = _checker(own) if own else None
        found = evaluate(components, denoisers, lines, card.defaults, checker=checker, progress=progress)
    return [_row(result, cards[result.profile].float_weights_bytes) for result in found]


def _row(found: ProfileFidelity, float_weights_bytes: int) -> Row:
    return Row(
        profile=found.profile,
        prompts=found.prompts,
        psnr_db=found.psnr_db,
        ssim=found.ssim,
        latent_error=found.latent_error,
        prompt_accuracy=found.prompt_accuracy,
        weights_bytes=found.weights_bytes,
        float_weights_bytes=float_weights_bytes,
        seconds=found.seconds,
    )


def _find(model: str, settings: WorkerSettings) -> tuple[ModelCard, Path, Catalog]:
    """A model by id or by folder: its card, its folder, and a catalog that has it."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        settings = settings.model_copy(update={"models": (*settings.models, folder.absolute())})
    catalog = Catalog.scan(settings)
    cards = [card for card in catalog.models.values() if folder.is_dir() and card.folder == folder.absolute()]
    card = cards[0] if cards else catalog.card(model)
    if card.folder is None:
        raise UnknownModel(f"model {card.id} has no weights", param="model")
    return card, card.folder, catalog


def _own_prompts(card: ModelCard, count: int, *, unseen: bool) -> Iterator[tuple[str, Scene]]:
    """Prompts of the shapes world and what they mean, half of one object and half of two: for models that speak of it.

    Raises:
        InvalidRequest: the model speaks of something else.
    """
    if card.vocabulary is None or not set(VOCABULARY) <= set(card.vocabulary):
        raise InvalidRequest(f"{card.id} has no prompts of its own; give a file of them by --prompts", param="prompts")
    rng = np.random.default_rng(2026)
    for number in range(count):
        scene = random_scene(rng, 1 + number % 2, unseen=unseen)
        yield caption(scene, rng), scene


def _checker(scenes: dict[str, Scene]) -> Checker:
    """Whether a picture shows the scene that its prompt was made of."""

    def check(prompt: str, picture: Tensor) -> bool:
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return not faults(pixels, scenes[prompt])

    return check


@contextmanager
def _told() -> Iterator[None]:
    """The quantization library's faults, which know nothing of ours, as faults for a user."""
    try:
        yield
    except quant.QuantError as fault:
        raise HalftoneError(str(fault)) from fault
