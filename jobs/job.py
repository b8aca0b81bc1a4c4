"""A job: its states and the table of legal moves, what it used, cost and made. Pure data; knows no Redis."""

from __future__ import annotations

import re
import secrets
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.quality import Summary
from jobs.request import AnyRequest, Notice

JOB_ID = re.compile(r"[0-9a-f]{32}")


def new_job_id() -> str:
    """A fresh id: 32 hexadecimal digits."""
    return secrets.token_hex(16)


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def final(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.FAILED, JobState.CANCELED}),
    # back to queued only when a lease ends: the worker died, froze, or drained
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}

_RECORD = ConfigDict(extra="forbid", frozen=True)

Variant = Literal["picture", "video", "thumbnail", "spritesheet", "report", "difference"]
"""What a result file is to its job."""


class ResultFile(BaseModel):
    """One file of a result. `id` is its public name at /v1/files/{id}; it is also the file's name on disk.

    `width` and `height` are a picture's or a frame's; `num_frames`, `fps` and `duration_seconds` are None where nothing
    moves.
    """

    model_config = _RECORD

    id: str
    mime: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    seed: int
    variant: Variant = "picture"
    num_frames: int | None = None
    fps: int | None = None
    duration_seconds: float | None = None


class Used(BaseModel):
    """What a job was really run with."""

    model_config = _RECORD

    model: str
    profile: str
    backend: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    width: int
    height: int
    scheduler: str
    num_frames: int | None = Field(None, description="Of a video; null for pictures.")
    fps: int | None = Field(None, description="Of a video; null for pictures.")
    guidance_saving: float | None = Field(
        None,
        description="Share of the denoiser's multiply-adds that the profile's guidance plan left out; 0 where it did "
        "not fit the request, null where the profile has none.",
    )


class Costs(BaseModel):
    """What a job cost. Seconds of wall time by stage; `peak_bytes` is the child's peak memory while the job ran."""

    model_config = _RECORD

    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    text_encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    denoiser_calls: int = 0
    peak_bytes: int = 0


class Failure(BaseModel):
    """Why a job failed: a stable code and a message that says what to do."""

    model_config = _RECORD

    code: str
    message: str


class JobResult(BaseModel):
    """What a succeeded job made."""

    model_config = _RECORD

    files: tuple[ResultFile, ...]
    used: Used
    costs: Costs
    notices: tuple[Notice, ...] = ()
    comparison: tuple[Summary, ...] = Field((), description="Of a comparison: each profile's verdict; see its report.")


class Job(BaseModel):
    """A job as Redis holds it. Times are Unix seconds by Redis's clock."""

    model_config = _RECORD

    id: str
    owner: str = ""
    request: AnyRequest
    state: JobState
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    deliveries: int = 0
    suspect_attempts: int = 0
    worker: str | None = None
    cancel_requested: bool = False
    step: int = 0
    total_steps: int = 0
    result: JobResult | None = None
    failure: Failure | None = None
