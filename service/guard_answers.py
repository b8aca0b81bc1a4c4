"""What the gateway answers of the quality guard, and how a record becomes that. Knows no request and no queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from jobs.catalog import Catalog
from jobs.evidence import FAILED_AT, WATCHED_AT
from jobs.guard import GuardEvent
from jobs.guard_record import LATENT_EDGES, PSNR_EDGES, Estimate, GuardRecord, Verdict
from service.settings import GuardAction, Settings


class Interval(BaseModel):
    """An estimate with its 95% confidence bounds, newest pictures weighing most; null from too few of them."""

    mean: float | None
    low: float | None
    high: float | None
    deviation: float | None = Field(description="Of single pictures.")


class Buckets(BaseModel):
    """Counts by upper edge; one more count than edges, for what lies above."""

    edges: list[float]
    counts: list[int]


class BuildFidelity(BaseModel):
    """What the artifact's build measured."""

    psnr_db: float | None
    pictures: int = Field(description="Measured one by one; 0 where the build kept a mean alone.")


class GuardCard(BaseModel):
    """One profile's build, as traffic shows it."""

    model: str
    profile: str
    verdict: Verdict
    reason: str
    since: float
    updated: float
    current: bool = Field(description="Whether this is the build that is served now; else its verdict counts no more.")
    comparisons: int
    elsewhere: int = Field(description="Comparisons at other settings than the build was measured at.")
    device_seconds: float = Field(description="That replays took.")
    evidence: dict[str, float] = Field(description="Against the profile, by what it is of.")
    psnr_db: Interval
    latent_error: Interval
    psnr_histogram: Buckets
    latent_histogram: Buckets
    build: BuildFidelity | None
    lifts: int


class GuardAnswer(BaseModel):
    """The guard."""

    object: Literal["list"] = "list"
    action: GuardAction = Field(description="What a request gets that names a failed profile.")
    failed_at: float = Field(
        FAILED_AT,
        description="Evidence at which a profile is failed. A healthy one gets there within T comparisons with a "
        "probability of at most 4 T / failed_at.",
    )
    watched_at: float = WATCHED_AT
    data: list[GuardCard]
    events: list[GuardEvent] = Field(description="Changes of verdicts, newest first.")


def guard_card(record: GuardRecord, catalog: Catalog) -> GuardCard:
    """A record as users see it."""
    model = catalog.models.get(record.model)
    card = None if model is None else model.profile(record.profile)
    latent = interval(record.latent_error)
    return GuardCard(
        **record.model_dump(include=set(GuardCard.model_fields) & {"model", "profile", "verdict", "reason", "lifts"}),
        since=record.since,
        updated=record.updated,
        current=card is not None and card.build == record.artifact,
        comparisons=record.comparisons,
        elsewhere=record.elsewhere,
        device_seconds=record.seconds,
        evidence=record.detectors._asdict(),
        psnr_db=interval(record.psnr_db),
        latent_error=Interval(**{name: _exp(value) for name, value in latent.model_dump().items()}),
        psnr_histogram=Buckets(edges=list(PSNR_EDGES), counts=list(record.psnr_histogram)),
        latent_histogram=Buckets(edges=list(LATENT_EDGES), counts=list(record.latent_histogram)),
        build=None
        if card is None or card.fidelity is None
        else BuildFidelity(
            psnr_db=card.fidelity.psnr_db,
            pictures=0 if card.fidelity.spread is None else len(card.fidelity.spread.psnr_db),
        ),
    )


def guard_answer(
    records: Sequence[GuardRecord], events: Sequence[GuardEvent], catalog: Catalog, settings: Settings
) -> GuardAnswer:
    """All that the guard knows."""
    data = [guard_card(record, catalog) for record in records]
    return GuardAnswer(action=settings.guard_action, data=data, events=list(events))


def interval(estimate: Estimate) -> Interval:
    """An estimate as users see it."""
    if not estimate.count:
        return Interval(mean=None, low=None, high=None, deviation=None)
    low, high = estimate.bounds or (None, None)
    return Interval(mean=estimate.mean, low=low, high=high, deviation=math.sqrt(max(0.0, estimate.variance)))


def _exp(value: float | None) -> float | None:
    """Estimates of latent errors are of their logarithm; a deviation becomes a factor."""
    return None if value is None else math.exp(value)
