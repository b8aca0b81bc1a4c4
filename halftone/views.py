"""What the API answers, as the clients read it: jobs, models, profiles. Pure data; does no I/O."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from jobs.job import Costs, Failure, JobState, ResultFile, Used
from jobs.profile import Defaults, Limits, ProfileCard
from jobs.request import Notice

# A client reads answers of newer gateways too: fields that it does not know are left out, not refused.
_ANSWER = ConfigDict(extra="ignore", frozen=True)


class FileView(ResultFile):
    """One finished file as the API describes it; `url` is where its bytes are."""

    model_config = _ANSWER

    url: str


class UsedView(Used):
    """What the job was really run with."""

    model_config = _ANSWER


class CostsView(Costs):
    """What the job cost, in seconds by stage and bytes."""

    model_config = _ANSWER


class ResultView(BaseModel):
    """What a succeeded job made."""

    model_config = _ANSWER

    files: tuple[FileView, ...]
    used: UsedView
    costs: CostsView
    notices: tuple[Notice, ...] = ()


class Progress(BaseModel):
    """How far a job is, in denoising steps."""

    model_config = _ANSWER

    step: int = 0
    total: int = 0
    percentage: float = 0.0


class JobView(BaseModel):
    """A job as the API shows it. Times are Unix seconds."""

    model_config = _ANSWER

    id: str
    kind: str = "image"
    status: JobState
    model: str
    profile: str
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    progress: Progress = Progress()
    queue_position: int | None = None
    eta_seconds: float | None = None
    request: dict[str, Any] = {}
    result: ResultView | None = None
    error: Failure | None = None


class JobList(BaseModel):
    """One page of jobs, newest first. Ask for the next with `after=` the last id."""

    model_config = _ANSWER

    data: tuple[JobView, ...]
    has_more: bool = False


class ReportView(BaseModel):
    """A comparison of profiles with float. `report` is everything found: `jobs.quality.Report` reads it.

    `summary` has a line for each profile, with its verdict; both are empty until the comparison has succeeded.
    """

    model_config = _ANSWER

    id: str
    status: JobState
    model: str
    profiles: tuple[str, ...]
    created_at: float
    finished_at: float | None = None
    expires_at: float | None = None
    summary: tuple[dict[str, Any], ...] = ()
    error: Failure | None = None
    urls: dict[str, str] = {}
    report: dict[str, Any] | None = None


class ReportList(BaseModel):
    """One page of comparisons, newest first, without their reports. Ask for the next with `after=` the last id."""

    model_config = _ANSWER

    data: tuple[ReportView, ...]
    has_more: bool = False


class LimitsView(Limits):
    """What a request may ask of the model."""

    model_config = _ANSWER


class DefaultsView(Defaults):
    """What a request gets where it says nothing."""

    model_config = _ANSWER


class ModelView(BaseModel):
    """One model that the service knows."""

    model_config = _ANSWER

    id: str
    kind: str
    pipeline: str
    description: str = ""
    defaults: DefaultsView
    limits: LimitsView
    trained_sizes: tuple[tuple[int, int], ...] = ()
    vocabulary: tuple[str, ...] | None = None
    profiles: tuple[str, ...]


class ModelList(BaseModel):
    """Every model."""

    model_config = _ANSWER

    data: tuple[ModelView, ...]


class ProfileView(ProfileCard):
    """One profile of one model."""

    model_config = _ANSWER

    backend: str  # type: ignore[assignment]  # a newer gateway may know more backends


class ProfileList(BaseModel):
    """Every profile of every model."""

    model_config = _ANSWER

    data: tuple[ProfileView, ...]


class GuardInterval(BaseModel):
    """An estimate with its 95% confidence bounds."""

    model_config = _ANSWER

    mean: float | None = None
    low: float | None = None
    high: float | None = None


class GuardBuild(BaseModel):
    """What a profile's build measured."""

    model_config = _ANSWER

    psnr_db: float | None = None
    pictures: int = 0


class GuardCardView(BaseModel):
    """What the quality guard knows of one profile."""

    model_config = _ANSWER

    model: str
    profile: str
    verdict: str
    reason: str
    current: bool = True
    comparisons: int = 0
    psnr_db: GuardInterval = GuardInterval()
    latent_error: GuardInterval = GuardInterval()
    evidence: dict[str, float] = {}
    build: GuardBuild | None = None
    lifts: int = 0


class GuardView(BaseModel):
    """The quality guard: every profile that was compared."""

    model_config = _ANSWER

    action: str
    failed_at: float
    data: tuple[GuardCardView, ...] = ()
