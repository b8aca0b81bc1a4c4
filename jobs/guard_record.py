"""What is known of a profile from comparisons on traffic, as one document, and how a comparison changes it. Pure data.

Must not know Redis, nor who compares.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.evidence import FAILED_AT, WATCHED_AT, Bets, Detectors, bets
from jobs.profile import ProfileCard
from jobs.request import ModelId, ProfileName
from jobs.spread import LEAST_ERROR, Measured, Setting

PSNR_EDGES = (15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0, 60.0)
LATENT_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Upper edges of the histograms' buckets; one more is for what lies above."""

MEMORY = 0.02
"""Weight of the newest comparison in estimates, once there are fifty: what lies back further than that fades."""

KEPT_IDS = 64
KEPT_PICTURES = 256
KEPT_SETTINGS = 12

_DATA = ConfigDict(extra="forbid", frozen=True)


class Verdict(StrEnum):
    """What the guard thinks of a profile."""

    HEALTHY = "healthy"
    WATCH = "watch"
    FAILED = "failed"


class Comparison(BaseModel):
    """One picture of a finished job beside float's, from the same seed and noise. Travels as JSON.

    `artifact` names the build; a comparison of another than the record's starts the record anew.
    """

    model_config = _DATA

    version: Literal[1] = 1
    id: str = Field(min_length=1, max_length=128)
    model: ModelId
    profile: ProfileName
    artifact: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    num_frames: int | None = None
    psnr_db: float
    latent_error: float
    call_errors: tuple[float, ...] = Field(min_length=1)
    build_excess: float | None = Field(
        None, description="How far what the build measured is exceeded when measured again, where it was; 1 is allowed."
    )
    bets: Bets | None = Field(description="Against the build's own pictures; null where the build measured nothing.")
    elsewhere: bool = Field(description="Whether the build was measured at other settings.")
    seconds: float = Field(ge=0, description="That the replay took of the device.")

    @property
    def setting(self) -> Setting:
        """What the picture's fidelity depends on beside its subject."""
        return Setting(self.width, self.height, self.num_inference_steps, self.guidance_scale, self.num_frames)


def comparison(
    card: ProfileCard,
    usual: Setting,
    name: str,
    setting: Setting,
    measured: Measured,
    build_excess: float | None,
    seconds: float,
) -> Comparison:
    """A picture of a profile beside float's, judged by what the profile's build measured: a mean alone, which is of
    `usual`, the model's defaults, tells nothing of pictures at other settings.
    """
    fidelity = card.fidelity
    spread = None if fidelity is None else fidelity.spread
    elsewhere = fidelity is not None and setting != (usual if spread is None else spread.setting)
    mean = None if fidelity is None or elsewhere else fidelity.psnr_db
    judged = None if fidelity is None else bets(measured, setting, spread, mean, build_excess)
    return Comparison(
        id=name,
        model=card.model,
        profile=card.name,
        artifact=card.build,
        **setting._asdict(),
        psnr_db=measured.psnr_db,
        latent_error=measured.latent_error,
        call_errors=tuple(measured.call_errors),
        build_excess=build_excess,
        bets=judged,
        elsewhere=elsewhere,
        seconds=seconds,
    )


class Estimate(BaseModel):
    """Mean and variance, exponentially weighted; `share` is the sum of squared weights, 1 over the effective count."""

    model_config = _DATA

    mean: float = 0.0
    variance: float = 0.0
    share: float = 0.0
    count: int = 0

    def after(self, value: float) -> Estimate:
        """Once a value has come: a plain mean at first, then one that forgets."""
        weight = max(MEMORY, 1 / (self.count + 1))
        step = value - self.mean
        return Estimate(
            mean=self.mean + weight * step,
            variance=(1 - weight) * (self.variance + weight * step * step),
            share=(1 - weight) ** 2 * self.share + weight**2,
            count=self.count + 1,
        )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The mean's 95% confidence bounds; None from fewer than two values."""
        if self.count < 2:
            return None
        half = 1.96 * math.sqrt(self.variance * self.share / (1 - self.share))
        return self.mean - half, self.mean + half


class Pictures(BaseModel):
    """The latest pictures at one setting."""

    model_config = _DATA

    setting: Setting
    psnr_db: tuple[float, ...] = ()

    def after(self, psnr_db: float) -> Pictures:
        """Once a picture has come; the oldest goes."""
        return self.model_copy(update={"psnr_db": (*self.psnr_db, round(psnr_db, 3))[-KEPT_PICTURES:]})


class GuardRecord(BaseModel):
    """Everything known of a profile's build from traffic.

    Attributes:
        comparisons: all that counted; `elsewhere` of them at other settings than the build was measured at.
        detectors: evidence that it got worse than its build; see `jobs.evidence`.
        psnr_db, latent_error: estimates; the latter of the natural logarithm.
        psnr_histogram, latent_histogram: counts by bucket.
        pictures: the latest by setting, the least recently seen setting first.
        seen: ids of the latest comparisons, so that one that is sent twice counts once.
        lifts: how often an operator lifted a verdict.
    """

    model_config = _DATA

    version: Literal[1] = 1
    model: ModelId
    profile: ProfileName
    artifact: str
    verdict: Verdict = Verdict.HEALTHY
    reason: str = "nothing was compared with its build yet"
    since: float
    updated: float
    comparisons: int = 0
    elsewhere: int = 0
    seconds: float = 0.0
    detectors: Detectors = Detectors()
    psnr_db: Estimate = Estimate()
    latent_error: Estimate = Estimate()
    psnr_histogram: tuple[int, ...] = (0,) * (len(PSNR_EDGES) + 1)
    latent_histogram: tuple[int, ...] = (0,) * (len(LATENT_EDGES) + 1)
    pictures: tuple[Pictures, ...] = ()
    seen: tuple[str, ...] = ()
    lifts: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Model and profile."""
        return self.model, self.profile

    def pictures_at(self, setting: Setting) -> tuple[float, ...]:
        """PSNR of the latest pictures at a setting."""
        return next((seen.psnr_db for seen in self.pictures if seen.setting == setting), ())


def empty(model: str, profile: str, artifact: str, now: float) -> GuardRecord:
    """The record of a build of which nothing is known."""
    return GuardRecord(model=model, profile=profile, artifact=artifact, since=now, updated=now)


def after(record: GuardRecord, one: Comparison, now: float) -> GuardRecord:
    """The record once a comparison has come. A failed verdict stays failed; what tells nothing leaves any as it is."""
    if one.id in record.seen and one.artifact == record.artifact:
        return record
    if one.artifact != record.artifact:
        record = empty(one.model, one.profile, one.artifact, now)
    detectors = record.detectors if one.bets is None else record.detectors.after(one.bets)
    verdict, reason = judge(detectors, record.comparisons + 1, judged=one.bets is not None)
    if record.verdict is Verdict.FAILED or one.bets == Bets():
        verdict, reason = record.verdict, record.reason
    return record.model_copy(
        update={
            "verdict": verdict,
            "reason": reason,
            "since": record.since if verdict is record.verdict else now,
            "updated": now,
            "comparisons": record.comparisons + 1,
            "elsewhere": record.elsewhere + int(one.elsewhere),
            "seconds": record.seconds + one.seconds,
            "detectors": detectors,
            "psnr_db": record.psnr_db.after(one.psnr_db),
            "latent_error": record.latent_error.after(math.log(max(one.latent_error, LEAST_ERROR))),
            "psnr_histogram": _counted(record.psnr_histogram, PSNR_EDGES, one.psnr_db),
            "latent_histogram": _counted(record.latent_histogram, LATENT_EDGES, one.latent_error),
            "pictures": _with_picture(record.pictures, one),
            "seen": (*record.seen, one.id)[-KEPT_IDS:],
        }
    )


def lifted(record: GuardRecord, now: float) -> GuardRecord:
    """The record once an operator has said that the profile may be used: evidence starts anew, estimates stay."""
    return record.model_copy(
        update={
            "verdict": Verdict.HEALTHY,
            "reason": "lifted by an operator",
            "since": now,
            "updated": now,
            "detectors": Detectors(),
            "pictures": (),
            "lifts": record.lifts + 1,
        }
    )


_WHAT = {
    "call": "its denoiser's answers are farther from float's than when it was built",
    "step": "at one step its denoiser's answer is farther from float's than when it was built",
    "build": "what its build measured is worse when it is measured again",
    "picture": "its pictures are farther from float's than when it was built",
}


def judge(detectors: Detectors, comparisons: int, *, judged: bool) -> tuple[Verdict, str]:
    """Verdict and reason by the strongest detector; without a measurement at build time nothing is ever failed."""
    if not judged:
        return Verdict.WATCH, "its build measured no fidelity to judge it by"
    name, value = detectors.strongest
    verdict = Verdict.FAILED if value >= FAILED_AT else Verdict.WATCH if value >= WATCHED_AT else Verdict.HEALTHY
    if verdict is Verdict.HEALTHY:
        return verdict, f"as it was built, by {comparisons} comparisons"
    chance = min(1.0, 4 * comparisons / value)
    return verdict, f"{_WHAT[name]}; a healthy profile would look so by chance with a probability under {chance:.1g}"


def _counted(histogram: tuple[int, ...], edges: tuple[float, ...], value: float) -> tuple[int, ...]:
    place = sum(value > edge for edge in edges)
    return tuple(count + (index == place) for index, count in enumerate(histogram))


def _with_picture(pictures: tuple[Pictures, ...], one: Comparison) -> tuple[Pictures, ...]:
    own = next((seen for seen in pictures if seen.setting == one.setting), Pictures(setting=one.setting))
    others = tuple(seen for seen in pictures if seen.setting != one.setting)
    return (*others, own.after(one.psnr_db))[-KEPT_SETTINGS:]
