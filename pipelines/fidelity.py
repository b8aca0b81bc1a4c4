"""How far a profile's pictures are from the float model's at the same seeds, on the way and at the end.

Measured on final frames before encoding. Must not know how a profile computes, or what a prompt means: the caller
passes a checker, and pictures to compare with, where they exist.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import quant
from jobs.profile import FLOAT, Defaults
from pipelines.calibrate import Progress, batched_range, silent
from pipelines.denoiser import Denoiser
from pipelines.drawing import Drawn, draw_batch
from pipelines.families import Subject, UnsupportedModel
from pipelines.load import Components
from pipelines.similarity import (
    SMALLEST_SIDE,
    Consistency,
    as_frames,
    consistency,
    decibels,
    mean_decibels,
    ms_ssim,
    psnr,
    ssim,
)
from pipelines.temporal import NO_TEMPORAL, TemporalFidelity, compare_features
from quant.metrics import Features

Checker = Callable[[str, Tensor], bool]
"""Whether a picture [3, H, W], or a video [F, 3, H, W], float in 0..1 shows all that a prompt names."""

OnPicture = Callable[[str, int, Tensor], None]
"""Told (profile, number of the subject, its picture [C, H, W], or video [F, C, H, W], float in 0..1)."""


class Reference(Protocol):
    """Pictures as they should be, to compare a whole set with: their Fréchet distance."""

    def features(self, pictures: Tensor) -> Tensor:
        """What the distance is taken of: pictures [n, C, H, W] float in 0..1 to [n, F]."""

    def distance(self, features: Tensor) -> float:
        """Distance of pictures with features [N, F] from the reference."""


@dataclass(frozen=True, slots=True)
class PromptFidelity:
    """One subject by one profile, against float at the same seed.

    `psnr_db` is None where the pictures are identical. `trajectory` is the relative L2 distance of its latents from
    float's after each scheduler step, `latent_error` the last of them. `right` is None without a checker.
    Of videos the SSIMs are means over frames, and `consistency` is there.
    """

    prompt: Subject
    seed: int
    psnr_db: float | None
    identical: bool
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int
    latent_error: float
    trajectory: tuple[float, ...]
    seconds: float
    right: bool | None
    consistency: Consistency | None = None


@dataclass(frozen=True, slots=True)
class ProfileFidelity:
    """One profile over all subjects: means, and every subject. What was not asked for is None.

    Attributes:
        prompts: how many pictures were compared.
        psnr_db: mean over the pictures that differ from float's, None where none does; `identical` is how many do not.
        ms_ssim: of `ms_ssim_scales` scales, as many as fit pictures of this size.
        trajectory: mean over pictures of ||x_t - x^_t|| / ||x_t|| after each scheduler step; `trajectory_distance` is
            their mean, `latent_error` the last.
        seconds: for one picture: the median over pictures, so that what is compiled at the start does not count.
        temporal_*, mismatch_*: of its temporal features, see `TemporalFidelity`.
        frechet: Fréchet distance of all its pictures from the reference.
        change_error, flicker, float_flicker: of videos, means of `Consistency`.
    """

    profile: str
    prompts: int
    psnr_db: float | None
    identical: int
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int
    latent_error: float
    trajectory_distance: float
    trajectory: tuple[float, ...]
    seconds: float
    weights_bytes: int
    prompt_accuracy: float | None
    float_prompt_accuracy: float | None
    frechet: float | None
    change_error: float | None
    flicker: float | None
    float_flicker: float | None
    temporal_cosine_worst: float | None
    temporal_cosine_mean: float | None
    temporal_cosine_worst_by_step: tuple[float, ...]
    temporal_cosine_mean_by_step: tuple[float, ...]
    mismatch_rate: float | None
    mismatch_by_step: tuple[float, ...]
    each: tuple[PromptFidelity, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """What a manifest's `fidelity` holds."""
        names = (
            *(
                "prompts",
                "psnr_db",
                "identical",
                "ssim",
                "prompt_accuracy",
                "float_prompt_accuracy",
                "trajectory_distance",
            ),
            *("temporal_cosine_worst", "mismatch_rate", "seconds", "change_error", "flicker", "float_flicker"),
        )
        return {name: getattr(self, name) for name in names}


class _Rows:
    """What is kept of one profile while batches come and go: numbers, no pictures."""

    def __init__(self) -> None:
        self.each: list[PromptFidelity] = []
        self.features: list[Tensor] = []

    def distance(self, reference: Reference | None) -> float | None:
        return None if reference is None else reference.distance(torch.cat(self.features))

    def accuracy(self) -> float | None:
        known = [row.right for row in self.each if row.right is not None]
        return sum(known) / len(known) if known else None


def evaluate(
    components: Components,
    denoisers: Mapping[str, Denoiser],
    subjects: Sequence[Subject],
    defaults: Defaults,
    *,
    seed: int = 0,
    batch: int = 8,
    checker: Checker | None = None,
    reference: Reference | None = None,
    features: Mapping[str, Features] | None = None,
    on_picture: OnPicture | None = None,
    progress: Progress = silent,
) -> list[ProfileFidelity]:
    """Draws every subject by every denoiser, picture i from seed `seed + i`, and compares each with `float`'s.

    `batch` pictures are drawn together; only one batch's pictures and float latents are held at a time. `features` are
    the temporal features of profiles by name, `float` among them; a profile that is not there has none.

    Raises:
        ValueError: there is no subject, no denoiser named `float` to compare with, or features that do not compare.
        UnsupportedModel: the model cannot draw the subjects at these settings, or too small to compare.
    """
    if not subjects or FLOAT not in denoisers:
        raise ValueError(f"fidelity needs a denoiser named {FLOAT!r} and at least one subject")
    rows = {name: _Rows() for name in denoisers}
    done, total = 0, len(subjects) * len(denoisers)
    for numbers in batched_range(len(subjects), batch):
        chosen, seeds = [subjects[number] for number in numbers], [seed + number for number in numbers]
        truth = None
        for name in (FLOAT, *(name for name in denoisers if name != FLOAT)):
            progress("comparing", done, total)
            drawn = draw_batch(components, denoisers[name], chosen, seeds, defaults)
            truth = truth or drawn
            rows[name].each += _compare(chosen, seeds, drawn, truth, checker)
            if reference is not None:
                rows[name].features.append(reference.features(drawn.pictures))
            if on_picture is not None:
                for number, picture in zip(numbers, drawn.pictures, strict=True):
                    on_picture(name, number, picture)
            done += len(numbers)
    progress("comparing", total, total)
    temporal = compare_features(features or {})
    return [
        _summarize(name, denoisers[name], found, rows[FLOAT].accuracy(), reference, temporal.get(name, NO_TEMPORAL))
        for name, found in rows.items()
    ]


def _compare(
    subjects: Sequence[Subject], seeds: Sequence[int], drawn: Drawn, truth: Drawn, checker: Checker | None
) -> list[PromptFidelity]:
    height, width = truth.pictures.shape[-2:]
    if min(height, width) < SMALLEST_SIDE:
        side = f"{SMALLEST_SIDE}x{SMALLEST_SIDE}"
        raise UnsupportedModel(f"pictures of {width}x{height} pixels cannot be compared: SSIM needs at least {side}")
    trajectories = trajectory_distances(drawn.latents, truth.latents).tolist()
    levels = [decibels(psnr(own, other)) for own, other in zip(drawn.pictures, truth.pictures, strict=True)]
    pairs = [(as_frames(own), as_frames(other)) for own, other in zip(drawn.pictures, truth.pictures, strict=True)]
    scaled = [[ms_ssim(*frames) for frames in zip(*pair, strict=True)] for pair in pairs]
    return [
        PromptFidelity(
            prompt=subject,
            seed=seeds[i],
            psnr_db=levels[i],
            identical=levels[i] is None,
            ssim=statistics.fmean(ssim(*frames) for frames in zip(*pairs[i], strict=True)),
            ms_ssim=statistics.fmean(one.value for one in scaled[i]),
            ms_ssim_scales=scaled[i][0].scales,
            latent_error=trajectories[i][-1],
            trajectory=tuple(trajectories[i]),
            seconds=drawn.seconds,
            right=None if checker is None or not isinstance(subject, str) else checker(subject, drawn.pictures[i]),
            consistency=consistency(*pairs[i]),
        )
        for i, subject in enumerate(subjects)
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def trajectory_distances(latents: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """[n, steps] float64: ||x_t - x^_t|| / ||x_t|| of n pictures after each step, of latents [n, ...] for each step.

    TFMQ-DM's third symptom, as it measures it, relative to the float latents' size.

    Raises:
        ValueError: the numbers of steps or the shapes differ.
    """
    if len(latents) != len(truth):
        raise ValueError(f"trajectories of {len(latents)} and {len(truth)} steps cannot be compared")
    return torch.stack([quant.relative_errors(one, other) for one, other in zip(latents, truth, strict=True)], dim=1)


def _summarize(
    name: str,
    denoiser: Denoiser,
    rows: _Rows,
    float_accuracy: float | None,
    reference: Reference | None,
    temporal: TemporalFidelity,
) -> ProfileFidelity:
    each, moves = rows.each, [row.consistency for row in rows.each if row.consistency is not None]
    level, identical = mean_decibels(row.psnr_db for row in each)
    trajectory = tuple(map(statistics.fmean, zip(*(row.trajectory for row in each), strict=True)))
    return ProfileFidelity(
        profile=name,
        prompts=len(each),
        psnr_db=level,
        identical=identical,
        ssim=statistics.fmean(row.ssim for row in each),
        ms_ssim=statistics.fmean(row.ms_ssim for row in each),
        ms_ssim_scales=each[0].ms_ssim_scales,
        latent_error=statistics.fmean(row.latent_error for row in each),
        trajectory_distance=statistics.fmean(trajectory),
        trajectory=trajectory,
        seconds=statistics.median(row.seconds for row in each),
        weights_bytes=denoiser.weights_bytes,
        prompt_accuracy=rows.accuracy(),
        float_prompt_accuracy=float_accuracy,
        frechet=rows.distance(reference),
        change_error=_mean(one.change_error for one in moves),
        flicker=_mean(one.flicker for one in moves),
        float_flicker=_mean(one.float_flicker for one in moves),
        temporal_cosine_worst=temporal.cosine_worst,
        temporal_cosine_mean=temporal.cosine_mean,
        temporal_cosine_worst_by_step=temporal.cosine_worst_by_step,
        temporal_cosine_mean_by_step=temporal.cosine_mean_by_step,
        mismatch_rate=temporal.mismatch_rate,
        mismatch_by_step=temporal.mismatch_by_step,
        each=tuple(each),
    )
