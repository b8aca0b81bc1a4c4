"""A comparison of profiles with float: what is asked for, what was found, and how thresholds judge it. Pure data.

Knows no tensors, HTTP or Redis. Reports travel as JSON: the worker writes one as a result file, the gateway reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.fields import STRICT, Notice

Verdict = Literal["passed", "failed", "undecided", "not judged"]
"""`undecided`: a threshold is on something that was not measured; `not judged`: there were no thresholds."""

_REPORT = ConfigDict(extra="forbid", frozen=True)
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]

GIB = 2**30


class Thresholds(BaseModel):
    """What a profile must keep to. Those on pictures must hold for every picture, the others for the profile."""

    model_config = STRICT

    min_psnr_db: _Positive | None = Field(None, description="Of every picture; one identical with float's passes.")
    min_ssim: _Share | None = Field(None, description="Of every picture.")
    min_ms_ssim: _Share | None = Field(None, description="Of every picture.")
    max_lpips: _Positive | None = Field(None, description="Of every picture.")
    max_latent_error: _Positive | None = Field(None, description="Of every picture: of its last latents.")
    max_trajectory_distance: _Positive | None = Field(None, description="Of every picture: mean over its steps.")
    max_change_error: _Positive | None = Field(None, description="Of every video: of its frame-to-frame changes.")
    min_temporal_cosine: _Share | None = Field(None, description="Worst over modules and steps.")
    max_mismatch_rate: _Share | None = None
    min_prompt_accuracy: _Share | None = None
    min_speedup: _Positive | None = None
    max_weights_bytes: Annotated[int, Field(ge=0)] | None = None


class Scores(BaseModel):
    """One picture or video of a profile against float's of the same seed and noise; None where it was not measured.

    Of a video, SSIM, MS-SSIM and LPIPS are means over frames, PSNR is of all frames together.
    """

    model_config = _REPORT

    psnr_db: float | None = Field(description="null where it is infinite: the pictures are identical.")
    identical: bool
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int = Field(description="Of its five scales, how many fit pictures of this size.")
    lpips: float | None = None
    latent_error: float = Field(description="||x - x'|| / ||x|| of the last latents.")
    trajectory_distance: float = Field(description="The same, mean over all steps.")
    trajectory: tuple[float, ...] = Field(description="The same after each step.")
    change_error: float | None = Field(None, description="Videos: RMS of (its frame-to-frame change - float's).")
    flicker: float | None = Field(None, description="Videos: mean change of pixels that stand still in float's.")
    float_flicker: float | None = Field(None, description="Videos: float's own mean change of those pixels.")


class Shown(BaseModel):
    """One picture or video and what is known of it alone. `url` is filled in by the gateway."""

    model_config = _REPORT

    prompt: str
    seed: int
    file: str = Field(description="Its id, at /v1/files.")
    url: str | None = None
    seconds: float = Field(description="To draw it, as it ran here, waiting for company included.")
    right: bool | None = Field(None, description="Whether it shows what its prompt says, by the model's checker.")
    clip_score: float | None = None


class Compared(Shown):
    """One picture or video of a profile, and how far it is from float's."""

    difference: str = Field(description="File of |picture - float's|, amplified by `difference_scale`.")
    difference_url: str | None = None
    difference_scale: int
    scores: Scores
    verdict: Verdict = "not judged"
    reasons: tuple[str, ...] = ()


class Spent(BaseModel):
    """What a profile's pictures took, each drawn alone. Bytes are of the device child, as the system sees it."""

    model_config = _REPORT

    seconds: float = Field(description="For one picture: the median.")
    step_seconds: float = Field(description="One denoiser call: the median.")
    weights_bytes: int = Field(description="Denoiser weights in memory, compiled copies counted.")
    peak_bytes: int = Field(description="Most memory of the process while pictures were drawn; others' work counts.")
    activation_bytes: int = Field(description="The most by which a picture raised the memory there was before it.")


class Block(BaseModel):
    """A profile in the words of other engines' benchmarks; bytes in GiB."""

    model_config = _REPORT

    mean_psnr_db: float | None
    identical: int
    mean_ssim: float
    mean_lpips: float | None
    avg_time_s: float
    speedup: float
    memory_gib: float
    weights_gib: float
    activations_gib: float
    weights_reduction_percent: float


class FloatReport(BaseModel):
    """The float model's side."""

    model_config = _REPORT

    profile: Literal["float"] = "float"
    backend: str
    pictures: tuple[Shown, ...]
    spent: Spent
    prompt_accuracy: float | None = None
    clip_score: float | None = None


class ProfileReport(BaseModel):
    """One profile against float over all pictures: means, costs, verdict, and every picture."""

    model_config = _REPORT

    profile: str
    backend: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    psnr_db: float | None = Field(description="Mean over the pictures that differ from float's; null where none does.")
    worst_psnr_db: float | None = None
    identical: int = Field(description="How many pictures are identical with float's.")
    ssim: float
    ms_ssim: float
    ms_ssim_scales: int
    lpips: float | None = None
    clip_score: float | None = None
    latent_error: float
    trajectory_distance: float
    trajectory: tuple[float, ...] = Field(description="After each step, mean over pictures.")
    change_error: float | None = None
    flicker: float | None = None
    float_flicker: float | None = None
    temporal_cosine_worst: float | None = None
    temporal_cosine_mean: float | None = None
    temporal_cosine_worst_by_step: tuple[float, ...] = ()
    temporal_cosine_mean_by_step: tuple[float, ...] = ()
    mismatch_rate: float | None = None
    mismatch_by_step: tuple[float, ...] = ()
    prompt_accuracy: float | None = None
    float_prompt_accuracy: float | None = None
    spent: Spent
    speedup: float = Field(description="float's seconds for a picture over this profile's.")
    guidance_saving: float | None = None
    quality: Block
    pictures: tuple[Compared, ...]


class Settings(BaseModel):
    """At what the pictures were drawn."""

    model_config = _REPORT

    prompts: tuple[str, ...]
    negative_prompt: str
    seeds: tuple[int, ...]
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_frames: int | None = None
    fps: int | None = None
    scheduler: str


class Report(BaseModel):
    """Everything that a comparison found."""

    model_config = _REPORT

    version: Literal[1] = 1
    model: str
    kind: Literal["image", "video"] = "image"
    settings: Settings
    thresholds: Thresholds
    reference: FloatReport
    profiles: tuple[ProfileReport, ...]
    not_measured: dict[str, str] = Field({}, description="What is null above everywhere, and why.")
    notices: tuple[Notice, ...] = ()


class Summary(BaseModel):
    """One profile of a report in a line, for lists and events."""

    model_config = _REPORT

    profile: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    quality: Block

    @classmethod
    def of(cls, one: ProfileReport) -> Summary:
        """A profile's line."""
        return cls(profile=one.profile, verdict=one.verdict, reasons=one.reasons[:MOST_REASONS], quality=one.quality)


MOST_REASONS = 4
"""Reasons that a summary repeats; the report has all."""

_OF_PICTURE = (
    *("min_psnr_db", "min_ssim", "min_ms_ssim", "max_lpips"),
    *("max_latent_error", "max_trajectory_distance", "max_change_error"),
)


def judge_picture(scores: Scores, thresholds: Thresholds) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on one picture, and why."""
    found: list[tuple[Verdict, str]] = []
    for name in _OF_PICTURE:
        bound = getattr(thresholds, name)
        if bound is None:
            continue
        side, _, field = name.partition("_")
        if field == "psnr_db" and scores.identical:
            found.append(("passed", ""))
        else:
            found.append(_held(name, side, bound, getattr(scores, field)))
    return _sum_up(found)


def judge_profile(
    pictures: Sequence[Compared], measured: dict[str, float | None], thresholds: Thresholds
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on a profile: every picture passes, and so does what is `measured` of it as a whole.

    `measured` goes by the name of a threshold without its first word.
    """
    found: list[tuple[Verdict, str]] = [
        (picture.verdict, f"seed {picture.seed}, {picture.prompt!r}: {reason}")
        for picture in pictures
        for reason in picture.reasons
    ]
    found += [(picture.verdict, "") for picture in pictures if picture.verdict == "passed"]
    for name, value in measured.items():
        for side in ("min", "max"):
            bound = getattr(thresholds, f"{side}_{name}", None)
            if bound is not None:
                found.append(_held(f"{side}_{name}", side, bound, value))
    return _sum_up(found)


def _held(name: str, side: str, bound: float, value: float | None) -> tuple[Verdict, str]:
    """Whether a value keeps to one threshold."""
    field = name.partition("_")[2]
    if value is None:
        return "undecided", f"{name} {bound:g}: {field} was not measured"
    if (value >= bound) if side == "min" else (value <= bound):
        return "passed", ""
    return "failed", f"{field} is {value:.6g}, {'under' if side == 'min' else 'over'} {name} {bound:g}"


def _sum_up(found: Sequence[tuple[Verdict, str]]) -> tuple[Verdict, tuple[str, ...]]:
    """The worst verdict of all, with every reason."""
    reasons = tuple(reason for _, reason in found if reason)
    order: tuple[Verdict, ...] = ("failed", "undecided", "passed")
    for verdict in order:
        if any(one == verdict for one, _ in found):
            return verdict, reasons
    return "not judged", ()
