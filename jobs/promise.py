"""What a user may ask of a profile instead of its name, and what can be promised of one picture. Pure arithmetic.

A bound for a picture is not one on the mean: of pictures like those measured, at most one in twenty may lie below it.
The k-th smallest of n measured pictures is such a bound with confidence C where k is the greatest number with
P(Binomial(n, share) < k) <= 1 - C (Wilks 1941): no distribution is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jobs.spread import Setting, Spread

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class Quality(BaseModel):
    """How near to float pictures shall be."""

    model_config = _STRICT

    min_psnr_db: Annotated[float, Field(ge=5, le=100, allow_inf_nan=False)] = Field(
        description="Least PSNR to float's picture of the same seed; held for the share of pictures that the service "
        "states, 95% unless its operator chose otherwise."
    )


Deadline = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Bytes = Annotated[int, Field(gt=0)]


class Choice(BaseModel):
    """A profile that was chosen by promise, and why it may be trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    psnr_db: float | None = Field(
        None,
        description="Pictures are below this, at most, with the probability that `confidence` leaves; null for float, "
        "and where nothing is known: the evidence says so.",
    )
    confidence: float = Field(description="Share of pictures that is promised, and the confidence that it is so.")
    seconds: float | None = Field(None, description="Expected of the device.")
    weights_bytes: int
    evidence: str


def lower_bound(ascending: Sequence[float], confidence: float) -> float | None:
    """What at least a `confidence` share of pictures reach, with that confidence; None from too few pictures.

    Too few are those of which even the worst says too little: fewer than 59 at 95%.
    """
    place = _place(len(ascending), 1 - confidence)
    return None if place == 0 else ascending[place - 1]


def contradicted_above(ascending: Sequence[float], confidence: float) -> float:
    """The greatest bound that these pictures, few or many, do not contradict at the confidence; else infinity."""
    share, tail, chance = 1 - confidence, 1.0, 1.0
    count = len(ascending)
    for worse in range(1, count + 1):
        chance = math.comb(count, worse - 1) * share ** (worse - 1) * (1 - share) ** (count - worse + 1)
        tail -= chance
        if tail <= 1 - confidence:
            return ascending[worse - 1]
    return math.inf


def _place(count: int, share: float) -> int:
    """The greatest k with P(Binomial(count, share) < k) <= share; 0 where there is none."""
    below, place = 0.0, 0
    while place < count:
        below += math.comb(count, place) * share**place * (1 - share) ** (count - place)
        if below > share:
            break
        place += 1
    return place


def build_bound(spread: Spread | None, setting: Setting, confidence: float) -> float | None:
    """What the build's pictures promise at a setting; None where they say nothing of it.

    Between two measured numbers of steps, all else equal, the lower of both bounds holds.
    """
    if spread is None:
        return None
    measured = {point.setting: point.psnr_db for point in spread.points} | {spread.setting: spread.psnr_db}
    if setting in measured:
        return lower_bound(measured[setting], confidence)
    alike = {
        other.num_inference_steps: values
        for other, values in measured.items()
        if other._replace(num_inference_steps=setting.num_inference_steps) == setting
    }
    fewer = [steps for steps in alike if steps < setting.num_inference_steps]
    more = [steps for steps in alike if steps > setting.num_inference_steps]
    if not fewer or not more:
        return None
    bounds = [lower_bound(alike[steps], confidence) for steps in (max(fewer), min(more))]
    known = [bound for bound in bounds if bound is not None]
    return min(known) if len(known) == 2 else None
