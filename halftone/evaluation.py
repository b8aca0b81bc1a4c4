"""`halftone evaluate`: a model's profiles held against float, as rows of a table and as everything behind them.

Knows no server. Importing it imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

import quant
from halftone import render
from halftone.build import Found, Progress, choose_subjects, find_model, library_faults, world_spoken
from halftone.local import open_denoiser
from jobs.profile import FLOAT, Defaults, GuidanceCard, ModelCard, ProfileCard
from pipelines.families import Subject
from pipelines.features import temporal_features
from pipelines.fidelity import ProfileFidelity, Reference, evaluate
from pipelines.load import load_components, quiet
from quant.temporal.select import Selection
from workers.settings import WorkerSettings
from zoo.frechet import FEWEST
from zoo.shapes.world import SIDE
from zoo.worlds import checker_of

SHOWN = 8
"""Pictures of each profile that the sample grid shows."""

SAMPLES = 32


@dataclass(frozen=True)
class Row:
    """One profile against float on the same subjects and seeds, as `--json` prints it; seconds per picture."""

    profile: str
    prompts: int
    psnr_db: float | None
    identical: int
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int
    latent_error: float
    trajectory_distance: float
    temporal_cosine_worst: float | None
    mismatch_rate: float | None
    prompt_accuracy: float | None
    frechet: float | None
    weights_bytes: int
    float_weights_bytes: int
    seconds: float

    def cells(self) -> list[str]:
        """As a table's cells, under COLUMNS."""
        share = 100 * self.weights_bytes / max(1, self.float_weights_bytes)
        return [
            self.profile,
            str(self.prompts),
            render.or_dash(self.psnr_db, ".1f"),
            str(self.identical),
            f"{self.ssim:.4f}",
            f"{self.ms_ssim:.4f}",
            f"{100 * self.trajectory_distance:.2f}",
            render.or_dash(self.temporal_cosine_worst, ".4f"),
            render.or_dash(self.mismatch_rate, ".1f", 100),
            render.or_dash(self.prompt_accuracy, ".1f", 100),
            render.or_dash(self.frechet, ".3f"),
            f"{self.weights_bytes / 1e6:.1f}",
            f"{share:.0f}",
            f"{self.seconds:.2f}",
        ]


COLUMNS = (
    *("profile", "pictures", "PSNR dB", "identical", "SSIM", "MS-SSIM"),
    *("trajectory %", "temporal cosine", "mismatch %", "prompt accuracy %"),
    *("Fréchet", "weights MB", "of float %", "seconds"),
)


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation found.

    Attributes:
        model: the model's id; `pipeline` its class.
        defaults: the settings that pictures were drawn at.
        seed: picture i was drawn from seed + i.
        subjects: what they were of.
        found: every profile, `float` first; `float_weights_bytes` of each by name.
        shown: the first SHOWN pictures of each profile, [C, H, W] float in 0..1.
        selections: how profiles with both tables and quantized temporal layers choose between them.
        plans: guidance plans of profiles that have one.
        notes: what was left out, and why.
    """

    model: str
    pipeline: str
    defaults: Defaults
    seed: int
    subjects: Sequence[Subject]
    found: Sequence[ProfileFidelity]
    float_weights_bytes: Mapping[str, int]
    shown: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    selections: Mapping[str, Selection] = field(default_factory=dict)
    plans: Mapping[str, GuidanceCard] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        """One row for each profile."""
        return [_row(one, self.float_weights_bytes[one.profile]) for one in self.found]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column heads and rows of cells, without columns in which nothing was measured."""
        rows = [row.cells() for row in self.rows]
        told = [place for place in range(len(COLUMNS)) if any(row[place] != render.NOTHING for row in rows)]
        return [COLUMNS[place] for place in told], [[row[place] for place in told] for row in rows]

    def as_json(self) -> dict[str, Any]:
        """All numbers, as plain JSON."""
        return {
            "format": 1,
            "model": self.model,
            "pipeline": self.pipeline,
            "settings": self.defaults.model_dump(mode="json", exclude_none=True),
            "seed": self.seed,
            "pictures": len(self.subjects),
            "notes": list(self.notes),
            "profiles": [
                one.as_json() | {"float_weights_bytes": self.float_weights_bytes[one.profile]} for one in self.found
            ],
        }


def evaluate_model(
    model: str,
    profiles: Sequence[str] | None,
    prompts: Sequence[str] | None,
    limit: int,
    progress: Progress,
    *,
    seed: int = 0,
) -> Evaluation:
    """Draws subjects by each profile and by float at the same seeds, and compares; `float` always comes first.

    Raises:
        HalftoneError: the model, a profile or the prompts do not exist or cannot be used; the message says how.
    """
    quiet()
    settings = WorkerSettings.load()
    at = find_model(model, settings, progress)
    wanted = profiles or [profile.name for profile in at.card.profiles]
    names = [FLOAT, *(name for name in dict.fromkeys(wanted) if name != FLOAT)]
    cards = {name: at.catalog.profile(at.card.id, name) for name in names}
    chosen = choose_subjects(at, prompts, limit, SAMPLES, unseen=True)
    reference, notes = _reference(at.card, len(chosen.subjects), bool(chosen.asked))
    shown: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(profile: str, number: int, picture: Tensor) -> None:
        if number < SHOWN:
            shown[profile].append(picture if picture.ndim == 3 else picture[len(picture) // 2])

    with library_faults():
        components = load_components(at.folder)
        progress("temporal features", 0, 1)
        features = temporal_features(components, list(cards.values()), chosen.subjects[0], at.card.defaults)
        found = evaluate(
            components,
            {name: open_denoiser(at.catalog, at.card.id, name, components, settings) for name in names},
            chosen.subjects,
            at.card.defaults,
            seed=seed,
            checker=checker_of(chosen.asked) if chosen.asked else None,
            reference=reference,
            features=features,
            on_picture=keep,
            progress=progress,
        )
    sizes = {name: card.float_weights_bytes for name, card in cards.items()}
    evaluation = _evaluation(at, seed, chosen.subjects, found, sizes, shown, notes)
    plans = {name: card.guidance for name, card in cards.items() if card.guidance is not None}
    return replace(evaluation, selections=_selections(cards), plans=plans)


def _evaluation(
    at: Found,
    seed: int,
    subjects: Sequence[Subject],
    found: Sequence[ProfileFidelity],
    sizes: Mapping[str, int],
    shown: Mapping[str, Sequence[Tensor]],
    notes: Sequence[str],
) -> Evaluation:
    card = at.card
    return Evaluation(card.id, card.pipeline, card.defaults, seed, subjects, found, sizes, shown, notes)


def _selections(cards: Mapping[str, ProfileCard]) -> dict[str, Selection]:
    """The choices between table and layers that artifacts tell of."""
    artifacts = {name: card.artifact for name, card in cards.items() if card.artifact is not None}
    plans = {name: quant.read_manifest(folder).temporal for name, folder in artifacts.items()}
    return {name: plan.selection for name, plan in plans.items() if plan is not None and plan.selection is not None}


def _row(one: ProfileFidelity, float_weights_bytes: int) -> Row:
    names = [name for name in Row.__dataclass_fields__ if name != "float_weights_bytes"]
    return Row(**{name: getattr(one, name) for name in names}, float_weights_bytes=float_weights_bytes)


def _reference(card: ModelCard, pictures: int, ours: bool) -> tuple[Reference | None, list[str]]:
    """The world's own pictures, for models that speak of it on prompts that we chose; or why not."""
    world = world_spoken(card)
    if world is None or world.reference is None:
        return None, []
    if not ours:
        return None, ["No Fréchet distance: the prompts are not drawn as the world's pictures are."]
    if (card.defaults.width, card.defaults.height) != (SIDE, SIDE):
        return None, [f"No Fréchet distance: the world's pictures are {SIDE}x{SIDE}."]
    if pictures < FEWEST:
        return None, [f"No Fréchet distance: it needs at least {FEWEST} pictures (--limit)."]
    return world.reference(), []
