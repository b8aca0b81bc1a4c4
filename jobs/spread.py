"""How a profile's pictures scattered about float's when it was built: what later pictures are held against.

Pure numbers: knows no picture, no queue and no verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

EQUAL_DB = 100.0
"""PSNR that identical pictures are ranked at: above all that differ."""

LEAST_ERROR = 1e-5
"""Relative errors below count as this: float's own rounding, which may as well be 0."""

LEAST_DEVIATION = 0.05
"""Of a step's log error, so that a step at which all pictures agree does not make a molehill a mountain."""

ANCHOR_MEAN = 0.03
"""The log error of a picture that is made again may be so much greater than at build time, in the mean over steps."""

ANCHOR_STEP = 0.08
"""The same at any one step. Other kernels, on another machine, round otherwise."""

TEMPORAL_FACTOR, TEMPORAL_ERROR = 1.25, 0.001
"""A temporal feature's relative error may be so many times what it was, and so much more."""

_CARD = ConfigDict(extra="forbid", frozen=True)
Sorted = Annotated[tuple[float, ...], Field(min_length=1)]


class Setting(NamedTuple):
    """What a picture's fidelity depends on beside its prompt and seed."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_frames: int | None = None  # of a video


class HasSetting(Protocol):
    """A request that draws."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def num_inference_steps(self) -> int:
        """Of the scheduler."""

    @property
    def guidance_scale(self) -> float:
        """Of classifier-free guidance."""


def setting_of(request: HasSetting) -> Setting:
    """What a request's pictures' fidelity depends on; of a video also how many frames it has."""
    steps, guidance = request.num_inference_steps, request.guidance_scale
    return Setting(request.width, request.height, steps, guidance, getattr(request, "num_frames", None))


class Measured(NamedTuple):
    """One picture by a profile against float from the same seed and noise.

    `latent_error` is the relative L2 distance of the final latents, `call_errors` that of the denoiser's answer at each
    step on float's own latents: the error of one call, which no later call has amplified.
    """

    psnr_db: float
    latent_error: float
    call_errors: Sequence[float]


class Point(BaseModel):
    """PSNR of pictures at settings of their own, ascending."""

    model_config = _CARD

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_frames: int | None = None
    psnr_db: Sorted

    @property
    def setting(self) -> Setting:
        """The settings."""
        return Setting(self.width, self.height, self.num_inference_steps, self.guidance_scale, self.num_frames)


class Anchor(BaseModel):
    """A picture that can be made again: whoever makes it on the same machine meets the same errors of calls."""

    model_config = _CARD

    prompt: str
    seed: int
    call_log_error: tuple[float, ...] = Field(min_length=1, description="By step: log of a call's relative error.")

    def excess(self, call_errors: Sequence[float]) -> float:
        """How far errors, met anew, are above those of the build; 1 is as far as a healthy build may be.

        Raises:
            ValueError: they are of another number of steps.
        """
        pairs = zip(log_errors(call_errors), self.call_log_error, strict=True)
        above = [now - then for now, then in pairs]
        return max(statistics.fmean(above) / ANCHOR_MEAN, max(above) / ANCHOR_STEP)


class Spread(BaseModel):
    """Pictures one by one, at the model's defaults: every list is ascending and has an entry a picture.

    `call_mean` is a picture's mean over steps of how much greater than usual the log of its error is, `call_worst` the
    most that one of its steps exceeds the usual by, in that step's standard deviations.
    """

    model_config = _CARD

    version: Literal[1] = 1
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_frames: int | None = None
    fps: int | None = Field(None, description="Of a video; few models look at it.")
    psnr_db: Sorted
    latent_error: Sorted
    call_log_error: tuple[float, ...] = Field(description="By step: mean of the log of a call's relative error.")
    call_log_deviation: tuple[float, ...] = Field(description="By step: its standard deviation.")
    call_mean: Sorted
    call_worst: Sorted
    anchors: tuple[Anchor, ...] = Field((), description="A few of the pictures, to be made again.")
    temporal_error: dict[str, tuple[float, ...]] = Field(
        {}, description="Relative error of each temporal feature at each step, by module."
    )
    points: tuple[Point, ...] = Field((), description="PSNR at other settings.")

    @property
    def setting(self) -> Setting:
        """The settings of all but `points`."""
        return Setting(self.width, self.height, self.num_inference_steps, self.guidance_scale, self.num_frames)

    def excesses(self, call_errors: Sequence[float]) -> list[float]:
        """By step: the log of an error less what is usual at it."""
        pairs = zip(log_errors(call_errors), self.call_log_error, strict=True)
        return [value - usual for value, usual in pairs]

    def worst(self, excesses: Sequence[float]) -> float:
        """The greatest excess, in standard deviations of its step."""
        pairs = zip(excesses, self.call_log_deviation, strict=True)
        return max(excess / max(deviation, LEAST_DEVIATION) for excess, deviation in pairs)


def temporal_excess(now: Mapping[str, Sequence[float]], then: Mapping[str, Sequence[float]]) -> float:
    """How far temporal features' errors are above those of the build; 1 is as far as a healthy build may be.

    Raises:
        ValueError: they are of other modules or steps.
    """
    if set(now) != set(then):
        raise ValueError("the temporal features are of other modules than the build's")
    pairs = (pair for name in now for pair in zip(now[name], then[name], strict=True))
    return max((new / (TEMPORAL_FACTOR * old + TEMPORAL_ERROR) for new, old in pairs), default=0.0)


def log_errors(call_errors: Sequence[float]) -> list[float]:
    """Natural logarithms of relative errors."""
    return [math.log(max(error, LEAST_ERROR)) for error in call_errors]


def spread_of(pictures: Sequence[Measured], setting: Setting) -> Spread:
    """What pictures at one setting, two at least, say of a profile.

    Raises:
        ValueError: there are fewer than two, or they differ in their number of steps.
    """
    if len(pictures) < 2 or len({len(picture.call_errors) for picture in pictures}) != 1:
        raise ValueError("a spread needs two pictures or more, all of one number of denoiser steps")
    columns = list(zip(*(log_errors(picture.call_errors) for picture in pictures), strict=True))
    bare = Spread(
        **setting._asdict(),
        psnr_db=_ascending(picture.psnr_db for picture in pictures),
        latent_error=_ascending(picture.latent_error for picture in pictures),
        call_log_error=tuple(round(statistics.fmean(column), 5) for column in columns),
        call_log_deviation=tuple(round(statistics.stdev(column), 5) for column in columns),
        call_mean=(0.0,),
        call_worst=(0.0,),
    )
    excesses = [bare.excesses(picture.call_errors) for picture in pictures]
    own = {
        "call_mean": _ascending(map(statistics.fmean, excesses)),
        "call_worst": _ascending(map(bare.worst, excesses)),
    }
    return bare.model_copy(update=own)


def _ascending(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted(float(f"{value:.6g}") for value in values))
