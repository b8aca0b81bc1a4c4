"""OpenAI's video request and video object, our fields beside them, and the steps from and to `jobs`. Knows no HTTP."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from jobs.errors import InvalidRequest
from jobs.job import Costs, Job, JobState, Used
from jobs.promise import Bytes, Choice, Deadline, Quality
from jobs.request import (
    STRICT,
    Compression,
    Fps,
    Frames,
    Guidance,
    ModelId,
    Notice,
    Previews,
    Priority,
    ProfileName,
    Prompt,
    Seconds,
    Seed,
    Side,
    Steps,
    Text,
    VideoFormat,
    VideoParameters,
    VideoRequest,
)
from service.answers import JobUrls
from service.openai_images import Size

_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)


def _as_number(value: Any) -> Any:
    """OpenAI sends seconds as text."""
    if not isinstance(value, str):
        return value
    if not _NUMBER.fullmatch(value):
        raise ValueError("must be a number of seconds, like '2' or '2.5'")
    return float(value)


def _refuse(value: Any) -> Any:
    if value is not None:
        raise ValueError("videos are made of text alone; pictures are not taken")
    return value


DOCUMENTED = {
    "simple": {"summary": "A video", "value": {"prompt": "a red circle moves left on a beige background"}},
    "openai": {
        "summary": "OpenAI's own fields",
        "value": {"prompt": "a green star spins", "model": "shapes-video", "seconds": "2", "size": "64x64"},
    },
    "full": {
        "summary": "Everything chosen",
        "value": {
            "prompt": "a large blue square grows on a black background",
            "model": "shapes-video",
            "profile": "float",
            "negative_prompt": "red",
            "width": 64,
            "height": 64,
            "num_frames": 17,
            "fps": 8,
            "num_inference_steps": 20,
            "guidance_scale": 4.0,
            "seed": 7,
            "output_format": "webm",
            "output_compression": 80,
            "previews": 2,
            "priority": "high",
        },
    },
}
"""Examples for the API's documentation; a test sends each of them."""


class VideosBody(BaseModel):
    """A request to POST /v1/videos. `null` is the same as leaving a field out."""

    model_config = STRICT

    prompt: Prompt
    model: ModelId | None = Field(None, description="Model id from /v1/models; the service's default when left out.")
    seconds: Annotated[Seconds | None, BeforeValidator(_as_number)] = Field(
        None,
        description="Length, a number or text. Turned into the count of frames nearest to seconds x fps that the model "
        "can make; must agree with num_frames where both are given.",
    )
    size: Size | None = Field(
        None, description="'auto' (the model's default) or WIDTHxHEIGHT; must agree with width and height."
    )
    input_reference: Annotated[None, BeforeValidator(_refuse)] = Field(None, description="Not taken: text to video.")
    user: Annotated[str, Field(max_length=256)] | None = Field(None, description="Accepted and not used.")
    profile: ProfileName | None = Field(None, description="Quantization profile from /v1/profiles; default `float`.")
    quality: Quality | None = Field(None, description="How near to float; with profile auto.")
    deadline_seconds: Deadline | None = Field(None, description="Device seconds it may be expected to take; with auto.")
    max_memory_bytes: Bytes | None = Field(None, description="Of the denoiser's weights as stored; with auto.")
    negative_prompt: Text | None = None
    width: Side | None = None
    height: Side | None = None
    num_frames: Frames | None = Field(None, description="1 + a multiple of the model's `frames_multiple_of`.")
    fps: Fps | None = Field(None, description="Frames shown in a second; says nothing to the model.")
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    seed: Seed | None = Field(None, description="Drawn at random and returned when left out.")
    output_format: VideoFormat | None = Field(
        None, description="mp4 (default), webm, webp or gif (animated), or frames: a zip of PNG files."
    )
    output_compression: Compression | None = Field(
        None, description="Quality of mp4, webm and webp, 0 to 100; refused for gif and frames, which have none."
    )
    previews: Previews | None = Field(None, description="How many previews the job's events carry (default 0).")
    priority: Annotated[Priority, Field(strict=False)] | None = None

    def parameters(self) -> VideoParameters:
        """What is asked for, in the words of `jobs`; raises InvalidRequest for fields that contradict each other."""
        own = self.model_dump(exclude={"size", "input_reference", "user"}, exclude_none=True)
        if self.size not in (None, "auto"):
            own |= self._sides(str(self.size))
        try:
            return VideoParameters(**own)
        except ValidationError as error:
            raise InvalidRequest(f"the request contradicts itself: {error.errors()[0]['msg']}") from error

    def _sides(self, size: str) -> dict[str, int]:
        width, height = map(int, size.split("x"))
        for name, side, given in (("width", width, self.width), ("height", height, self.height)):
            if given not in (None, side):
                raise InvalidRequest(f"size: {size} contradicts {name} {given}; leave one of them out", param="size")
        return {"width": width, "height": height}


class VideoError(BaseModel):
    """Why there is no video."""

    code: str
    message: str


class VideoUrls(JobUrls):
    """Where to look at a video, follow and cancel its job, and get its files."""

    content: str
    thumbnail: str
    spritesheet: str


class VideoExtras(BaseModel):
    """What OpenAI's shape has no place for; `used` and `costs` are null until the video is there."""

    job_id: str
    used: Used | None
    costs: Costs | None
    notices: list[Notice]
    choice: Choice | None = Field(None, description="The profile that auto chose, and the evidence.")


class VideoAnswer(BaseModel):
    """OpenAI's video object, and ours beside it. Times are Unix seconds."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(description="Per cent.")
    model: str
    created_at: int
    completed_at: int | None
    expires_at: int | None = Field(description="When the files go.")
    seconds: str = Field(description="Length: num_frames / fps.")
    size: str
    prompt: str
    error: VideoError | None = Field(description="Why it failed; a canceled one has the code `canceled`.")
    remixed_from_video_id: None = None
    profile: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    output_format: VideoFormat
    output_compression: int | None
    previews: int
    priority: Priority
    queue_position: int | None = Field(None, description="Jobs ahead, while queued.")
    eta_seconds: float | None = Field(
        None, description="Expected seconds until it is done; null where nothing is known."
    )
    urls: VideoUrls
    halftone: VideoExtras


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None = Field(description="Pass as `after` to get the next page.")


class VideoDeleted(BaseModel):
    """The video is gone, or will be as soon as its worker has stopped."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


_STATUS: dict[JobState, Literal["queued", "in_progress", "completed", "failed"]] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELED: "failed",
}


def video_answer(
    job: Job, request: VideoRequest, base: str, position: int | None = None, eta: float | None = None
) -> VideoAnswer:
    """A job that makes a video as users of OpenAI's API see it; `base` is the gateway's own address."""
    own = request.model_dump(exclude={"version", "kind", "notices", "choice"})
    notices = job.result.notices if job.result else request.notices
    return VideoAnswer(
        id=job.id,
        status=_STATUS[job.state],
        progress=100 if job.state is JobState.SUCCEEDED else min(99, 100 * job.step // max(1, job.total_steps)),
        created_at=int(job.created_at),
        completed_at=_seconds(job.finished_at),
        expires_at=_seconds(job.expires_at),
        seconds=f"{request.num_frames / request.fps:.6g}",
        size=f"{request.width}x{request.height}",
        error=_error(job),
        queue_position=position,
        eta_seconds=eta,
        urls=_urls(job, base),
        halftone=VideoExtras(
            job_id=job.id,
            used=job.result.used if job.result else None,
            costs=job.result.costs if job.result else None,
            notices=list(notices),
            choice=request.choice,
        ),
        **own,
    )


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)


def _error(job: Job) -> VideoError | None:
    if job.state is JobState.CANCELED:
        return VideoError(code="canceled", message="the video was canceled")
    return None if job.failure is None else VideoError(code=job.failure.code, message=job.failure.message)


def _urls(job: Job, base: str) -> VideoUrls:
    video, native = f"{base}/v1/videos/{job.id}", f"{base}/v1/jobs/{job.id}"
    content = f"{video}/content"
    return VideoUrls(
        get=video,
        events=f"{native}/events",
        cancel=f"{native}/cancel",
        content=content,
        thumbnail=f"{content}?variant=thumbnail",
        spritesheet=f"{content}?variant=spritesheet",
    )
