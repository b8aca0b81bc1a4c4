"""What is measured of a tuned artifact beside its fidelity: seconds, and how its pictures scatter about float's.

Must not know how its recipe was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import quant
from jobs.manifest import Manifest
from jobs.profile import FLOAT, ProfileCard
from jobs.spread import Spread
from pipelines.beside import Remembered, timed
from pipelines.denoiser import Denoiser
from pipelines.load import Components
from pipelines.quantized import Means, load_profile
from pipelines.spreading import measure_spread, temporal_errors
from pipelines.tune_order import TuneOrder

TIMED = 8
"""Pictures whose time is taken."""


@contextmanager
def opened(place: Path, components: Components, means: Means) -> Iterator[tuple[ProfileCard, Denoiser]]:
    """An artifact's card and denoiser, closed afterwards."""
    card = Manifest.read(place / quant.MANIFEST).card(place)
    profile = load_profile(card, components, means)
    try:
        yield card, profile
    finally:
        close: Callable[[], None] | None = getattr(profile, "close", None)
        if close is not None:
            close()


def facts_of(place: Path, order: TuneOrder, components: Components, truth: Remembered, seed: int) -> dict[str, Any]:
    """Fields of a manifest's fidelity; held-out picture i is drawn from `seed` + i. A spread takes two pictures."""
    with opened(place, components, order.means) as (card, profile):
        both: dict[str, Denoiser] = {FLOAT: truth.denoiser, card.name: profile}
        seconds = timed(components, both, order.held_out[:TIMED], order.defaults)
        told: dict[str, Any] = {"seconds": seconds[card.name], "float_seconds": seconds[FLOAT]}
        if len(order.held_out) > 1:
            spread = _spread(card, profile, order, components, truth, seed)
            told["spread"] = spread.model_dump(mode="json")
    return told


def _spread(
    card: ProfileCard, profile: Denoiser, order: TuneOrder, components: Components, truth: Remembered, seed: int
) -> Spread:
    """Of held-out pictures: what `auto` promises by, and the guard holds traffic against."""
    subjects, defaults = order.held_out, order.defaults
    spread = measure_spread(components, truth, profile, subjects, defaults, seed=seed)
    errors = temporal_errors(components, card, subjects[0], defaults)
    return spread.model_copy(update={"temporal_error": errors})
