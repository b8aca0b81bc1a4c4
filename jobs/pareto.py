"""Which profiles of a model no other one beats: fidelity against seconds, and against bytes. Knows cards alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.profile import AXES, Axis, ProfileCard


@dataclass(frozen=True)
class Place:
    """Where a profile stands: PSNR to float in dB, infinite for float itself; seconds for a picture; bytes of weights.

    Seconds are those of the profile beside float's in one run, times the model's usual float seconds: runs of other
    times of a machine would not compare.
    """

    name: str
    psnr_db: float
    seconds: float | None
    bytes: int

    def cost(self, axis: Axis) -> float | None:
        """What it costs on an axis; None where that was not measured."""
        return self.seconds if axis == "seconds" else self.bytes


def places(cards: Iterable[ProfileCard]) -> list[Place]:
    """The places of one model's profiles: of float, and of those whose fidelity was measured."""
    known = list(cards)
    runs = [card.fidelity.float_seconds for card in known if card.fidelity and card.fidelity.float_seconds]
    usual = statistics.median(runs) if runs else None
    return [
        Place(card.name, psnr_db, _seconds(card, usual), card.weights_bytes)
        for card in known
        if (psnr_db := card.psnr_db) is not None
    ]


def frontier(found: Sequence[Place], axis: Axis) -> list[Place]:
    """Those that no other is as good as on both counts and better on one, the cheapest first."""
    costs = {place.name: cost for place in found if (cost := place.cost(axis)) is not None}
    ordered = sorted((place for place in found if place.name in costs), key=lambda p: (costs[p.name], -p.psnr_db))
    best, kept = -math.inf, list[Place]()
    for place in ordered:
        equal = bool(kept) and (costs[kept[-1].name], kept[-1].psnr_db) == (costs[place.name], place.psnr_db)
        if place.psnr_db > best or equal:
            kept.append(place)
            best = place.psnr_db
    return kept


def marked(cards: Sequence[ProfileCard]) -> list[ProfileCard]:
    """One model's cards with the axes on whose frontier each stands; None where its fidelity was not measured."""
    found = places(cards)
    best: dict[Axis, set[str]] = {axis: {place.name for place in frontier(found, axis)} for axis in AXES}
    known = {place.name for place in found}
    return [
        card.model_copy(update={"pareto": tuple(axis for axis in AXES if card.name in best[axis])})
        if card.name in known
        else card
        for card in cards
    ]


def _seconds(card: ProfileCard, usual: float | None) -> float | None:
    share = card.time_of_float
    return None if usual is None or share is None else usual * share
