"""From a comparison's pictures to its report: means, costs and verdicts. Pure; must not know how they were drawn."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jobs.profile import FLOAT
from jobs.quality import (
    GIB,
    Block,
    Compared,
    FloatReport,
    ProfileReport,
    Shown,
    Spent,
    Thresholds,
    judge_profile,
)
from pipelines.similarity import mean_decibels
from pipelines.temporal import NO_TEMPORAL, TemporalFidelity
from workers.compare_draw import Measured

P = TypeVar("P", bound=Shown)


@dataclass
class Side(Generic[P]):
    """One profile's pictures so far: what is told of each, and what was measured beside, without the pixels."""

    profile: str
    pictures: list[P] = field(default_factory=list)
    made: list[Measured] = field(default_factory=list)

    def add(self, made: Measured, picture: P) -> None:
        """One more."""
        self.pictures.append(picture)
        self.made.append(made.without_pixels())

    @property
    def spent(self) -> Spent:
        """What they took."""
        return Spent(
            seconds=statistics.median(one.seconds for one in self.made),
            step_seconds=statistics.median(one.step_seconds for one in self.made),
            weights_bytes=max(one.weights_bytes for one in self.made),
            peak_bytes=max(one.peak_bytes for one in self.made),
            activation_bytes=max(one.activation_bytes for one in self.made),
        )


def float_report(side: Side[Shown]) -> FloatReport:
    """Float's side."""
    return FloatReport(
        profile=FLOAT,
        backend=side.made[0].used.backend,
        pictures=tuple(side.pictures),
        spent=side.spent,
        prompt_accuracy=_accuracy(side.pictures),
        clip_score=_mean(picture.clip_score for picture in side.pictures),
    )


def profile_report(
    side: Side[Compared], reference: FloatReport, temporal: TemporalFidelity | None, thresholds: Thresholds
) -> ProfileReport:
    """A profile's side, judged."""
    pictures, spent = side.pictures, side.spent
    scores = [picture.scores for picture in pictures]
    level, identical = mean_decibels(one.psnr_db for one in scores)
    accuracy, speedup = _accuracy(pictures), reference.spent.seconds / spent.seconds
    features = temporal or NO_TEMPORAL
    measured = {
        "temporal_cosine": features.cosine_worst,
        "mismatch_rate": features.mismatch_rate,
        "prompt_accuracy": accuracy,
        "speedup": speedup,
        "weights_bytes": spent.weights_bytes,
    }
    verdict, reasons = judge_profile(pictures, measured, thresholds)
    ssim, lpips = statistics.fmean(one.ssim for one in scores), _mean(one.lpips for one in scores)
    return ProfileReport(
        profile=side.profile,
        backend=side.made[0].used.backend,
        verdict=verdict,
        reasons=reasons,
        psnr_db=level,
        worst_psnr_db=min((one.psnr_db for one in scores if one.psnr_db is not None), default=None),
        identical=identical,
        ssim=ssim,
        ms_ssim=statistics.fmean(one.ms_ssim for one in scores),
        ms_ssim_scales=scores[0].ms_ssim_scales,
        lpips=lpips,
        clip_score=_mean(picture.clip_score for picture in pictures),
        latent_error=statistics.fmean(one.latent_error for one in scores),
        trajectory_distance=statistics.fmean(one.trajectory_distance for one in scores),
        trajectory=tuple(map(statistics.fmean, zip(*(one.trajectory for one in scores), strict=True))),
        change_error=_mean(one.change_error for one in scores),
        flicker=_mean(one.flicker for one in scores),
        float_flicker=_mean(one.float_flicker for one in scores),
        temporal_cosine_worst=features.cosine_worst,
        temporal_cosine_mean=features.cosine_mean,
        temporal_cosine_worst_by_step=features.cosine_worst_by_step,
        temporal_cosine_mean_by_step=features.cosine_mean_by_step,
        mismatch_rate=features.mismatch_rate,
        mismatch_by_step=features.mismatch_by_step,
        prompt_accuracy=accuracy,
        float_prompt_accuracy=reference.prompt_accuracy,
        spent=spent,
        speedup=speedup,
        guidance_saving=side.made[0].used.guidance_saving,
        quality=_block(level, identical, ssim, lpips, spent, speedup, reference.spent),
        pictures=tuple(pictures),
    )


def _block(
    level: float | None,
    identical: int,
    ssim: float,
    lpips: float | None,
    spent: Spent,
    speedup: float,
    reference: Spent,
) -> Block:
    return Block(
        mean_psnr_db=level,
        identical=identical,
        mean_ssim=ssim,
        mean_lpips=lpips,
        avg_time_s=spent.seconds,
        speedup=speedup,
        memory_gib=spent.peak_bytes / GIB,
        weights_gib=spent.weights_bytes / GIB,
        activations_gib=spent.activation_bytes / GIB,
        weights_reduction_percent=100 * (1 - spent.weights_bytes / max(1, reference.weights_bytes)),
    )


def _accuracy(pictures: Sequence[Shown]) -> float | None:
    """Share of right pictures, of those that the checker can read."""
    return _mean(None if picture.right is None else float(picture.right) for picture in pictures)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
