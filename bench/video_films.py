"""What is seen on films of profiles: the right thing, the right motion, flicker; and how long one film takes alone.

Must not know how profiles are made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.table import Found
from jobs.profile import FLOAT, Defaults
from pipelines.denoiser import Denoiser, DenoiserCall
from pipelines.drawing import draw_batch
from pipelines.load import Components
from quant.guidance.plan import GuidancePlan
from quant.precision import PreciseSteps
from quant.recipe_parts import FloatIn
from zoo.accuracy import as_bytes
from zoo.film_accuracy import motion_right, object_right
from zoo.shapes.flicker import flicker, still_parts
from zoo.worlds import Asked

ROUNDS = 3
"""Films of each denoiser whose time counts, in turn with float's."""


@dataclass
class Judged:
    """Films of one profile and float's, judged as they come; `asked` are the prompts by number."""

    asked: list[Asked]
    things: dict[str, list[bool]] = field(default_factory=dict)
    motions: dict[str, list[bool]] = field(default_factory=dict)
    flickers: dict[str, list[float]] = field(default_factory=dict)
    _still: dict[int, NDArray[np.bool_]] = field(default_factory=dict)

    def see(self, profile: str, number: int, film: Tensor) -> None:
        """Counts one film [F, 3, H, W] float in 0..1; float's come before a profile's."""
        wrong, pixels = self.asked[number].faults(film), as_bytes(film)
        self.things.setdefault(profile, []).append(object_right(wrong))
        self.motions.setdefault(profile, []).append(motion_right(wrong))
        if profile == FLOAT:
            self._still[number] = still_parts(pixels)
        if self._still[number].any():
            self.flickers.setdefault(profile, []).append(flicker(pixels, self._still[number]))

    def told(self, profile: str) -> Found:
        """Shares of films with the right thing, and motion; change of what is still in float's films, in levels of 255,
        None where nothing is.
        """
        changes = self.flickers.get(profile, [])
        return {
            "films": len(self.things[profile]),
            "thing_accuracy": statistics.fmean(self.things[profile]),
            "motion_accuracy": statistics.fmean(self.motions[profile]),
            "still_change": statistics.fmean(changes) if changes else None,
        }


class Clocked:
    """A denoiser that adds up the seconds of its calls."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.seconds = 0.0

    def run(self, call: DenoiserCall) -> Tensor:
        """The denoiser's output."""
        started = time.perf_counter()
        output = self._denoiser.run(call)
        self.seconds += time.perf_counter() - started
        return output

    @property
    def name(self) -> str:
        """The denoiser's."""
        return self._denoiser.name

    @property
    def backend(self) -> str:
        """The denoiser's."""
        return self._denoiser.backend

    @property
    def weights_bytes(self) -> int:
        """The denoiser's."""
        return self._denoiser.weights_bytes

    @property
    def fallbacks(self) -> int:
        """The denoiser's."""
        return self._denoiser.fallbacks

    @property
    def guidance(self) -> GuidancePlan | None:
        """The denoiser's."""
        return self._denoiser.guidance

    @property
    def precision(self) -> PreciseSteps | None:
        """The denoiser's."""
        return self._denoiser.precision

    @property
    def decode_in(self) -> FloatIn:
        """The denoiser's."""
        return self._denoiser.decode_in


def alone(components: Components, denoisers: Mapping[str, Denoiser], prompt: str, defaults: Defaults) -> Found:
    """Seconds of one film drawn alone, by each denoiser: `total` and `step`, its calls' share of that by the number of
    steps; medians of rounds in turn, after one that does not count.
    """
    totals: dict[str, list[float]] = {name: [] for name in denoisers}
    steps: dict[str, list[float]] = {name: [] for name in denoisers}
    for _ in range(1 + ROUNDS):
        for name, denoiser in denoisers.items():
            clocked = Clocked(denoiser)
            totals[name].append(draw_batch(components, clocked, [prompt], [0], defaults).seconds)
            steps[name].append(clocked.seconds / defaults.num_inference_steps)
    return {
        name: {"total": statistics.median(totals[name][1:]), "step": statistics.median(steps[name][1:])}
        for name in denoisers
    }
