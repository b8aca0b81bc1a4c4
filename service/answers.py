"""What the gateway answers: response models, and how a job or a card becomes one. Knows no request and no queue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from jobs.job import Costs, Failure, Job, JobState, ResultFile, Used
from jobs.profile import Limits, ModelCard, ProfileCard
from jobs.promise import Choice
from jobs.quality import Summary
from jobs.request import AnyRequest, Notice


class ErrorBody(BaseModel):
    """A fault in OpenAI's shape."""

    message: str = Field(description="What was wrong, what was expected, what to do.")
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error.")
    param: str | None = Field(description="The request field at fault, when there is one.")
    code: str = Field(description="Stable, machine-readable name.")


class ErrorAnswer(BaseModel):
    """The envelope of every error."""

    error: ErrorBody


class Progress(BaseModel):
    """How far a job is, in denoiser steps."""

    step: int
    total: int
    percentage: float


class FileAnswer(ResultFile):
    """One file and where to get it."""

    url: str


class ResultAnswer(BaseModel):
    """What a succeeded job made, used and cost."""

    files: list[FileAnswer]
    used: Used
    costs: Costs
    notices: list[Notice]
    comparison: list[Summary] = Field([], description="Of a comparison: each profile's verdict; see its report.")


class JobUrls(BaseModel):
    """Where to poll, follow and cancel a job."""

    get: str
    events: str
    cancel: str


class JobAnswer(BaseModel):
    """A job as users see it. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    status: JobState
    model: str
    profile: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None = Field(description="When the result files go.")
    progress: Progress
    queue_position: int | None = Field(None, description="Jobs ahead, while queued.")
    eta_seconds: float | None = Field(
        None, description="Expected seconds until it is done, jobs ahead included; null where nothing is known."
    )
    cancel_requested: bool = False
    request: AnyRequest
    result: ResultAnswer | None
    error: Failure | None
    urls: JobUrls


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None = Field(description="Pass as `after` to get the next page.")


class Picture(BaseModel):
    """One picture, by link or inline."""

    url: str | None = None
    b64_json: str | None = None
    seed: int


class Extras(BaseModel):
    """What OpenAI's shape has no place for."""

    job_id: str
    used: Used
    costs: Costs
    notices: list[Notice]
    choice: Choice | None = Field(None, description="The profile that auto chose, and the evidence.")


class ImagesAnswer(BaseModel):
    """OpenAI's ImagesResponse, and ours in `halftone`."""

    created: int
    data: list[Picture]
    output_format: str
    size: str
    halftone: Extras


class ModelAnswer(BaseModel):
    """OpenAI's model object, with the model's card."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["halftone"] = "halftone"
    kind: str
    pipeline: str
    description: str
    defaults: dict[str, Any]
    limits: Limits
    trained_sizes: list[tuple[int, int]]
    vocabulary: list[str] | None
    profiles: list[str]


class ModelList(BaseModel):
    """Every model."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class ProfileList(BaseModel):
    """Every profile of every model, or of one."""

    object: Literal["list"] = "list"
    data: list[ProfileCard]


class DeadLetterList(BaseModel):
    """Jobs that were given up, newest first."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether requests would be accepted, and why not."""

    status: Literal["STARTING", "READY", "BUSY", "DRAINING"]
    ready: bool
    reasons: list[str]
    workers: int


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Plain data as JSON in ASCII, so that any text a client sent can be told back."""
    return _AsciiJson(content, status_code=status, headers=dict(headers or {}))


class _AsciiJson(JSONResponse):
    def render(self, content: Any) -> bytes:
        """JSON without spaces, every character above ASCII escaped."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def model_answer(content: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response model as JSON, serialized once by pydantic."""
    body = content.model_dump_json().encode()
    return Response(body, status_code=status, headers=dict(headers or {}), media_type="application/json")


def file_url(base: str, file_id: str) -> str:
    """A result file's absolute address; `base` ends without a slash."""
    return f"{base}/v1/files/{file_id}"


def job_answer(job: Job, base: str, position: int | None = None, eta: float | None = None) -> JobAnswer:
    """A job as users see it; `base` is the gateway's own address as the client reached it."""
    percentage = 100.0 if job.state is JobState.SUCCEEDED else 100.0 * job.step / max(1, job.total_steps)
    own = f"{base}/v1/jobs/{job.id}"
    return JobAnswer(
        id=job.id,
        kind=job.request.kind,
        status=job.state,
        model=job.request.model,
        profile=job.request.profile,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        progress=Progress(step=job.step, total=job.total_steps, percentage=round(min(percentage, 100.0), 1)),
        queue_position=position,
        eta_seconds=eta,
        cancel_requested=job.cancel_requested,
        request=job.request,
        result=_result_answer(job, base),
        error=job.failure,
        urls=JobUrls(get=own, events=f"{own}/events", cancel=f"{own}/cancel"),
    )


def _result_answer(job: Job, base: str) -> ResultAnswer | None:
    if job.result is None:
        return None
    files = [FileAnswer(**dict(file), url=file_url(base, file.id)) for file in job.result.files]
    result = job.result
    return ResultAnswer(
        files=files,
        used=result.used,
        costs=result.costs,
        notices=list(result.notices),
        comparison=list(result.comparison),
    )


def card_answer(card: ModelCard) -> ModelAnswer:
    """A model's card as users see it."""
    return ModelAnswer(
        id=card.id,
        kind=card.kind,
        pipeline=card.pipeline,
        description=card.description,
        defaults=card.defaults.model_dump(),
        limits=card.limits,
        trained_sizes=list(card.trained_sizes),
        vocabulary=list(card.vocabulary) if card.vocabulary is not None else None,
        profiles=[profile.name for profile in card.profiles],
    )
