"""/v1/videos: OpenAI's video routes on top of jobs: a video is a job of kind video. Knows no model and no codec."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import NotFound
from jobs.files import token_of
from jobs.job import Job, JobState
from jobs.request import VideoRequest
from service import answers, documents, intake, openai_videos
from service.context import Gateway, gateway_of, owner_of
from service.errors import NoContent
from service.openai_images import told_as_size
from service.openai_videos import VideosBody
from service.routes.jobs import Page
from service.sending import send_file

router = APIRouter(tags=["OpenAI-compatible"])
Owner = Annotated[str, Depends(owner_of)]


class ListQuery(Page):
    """Which videos."""

    after: str | None = Field(None, max_length=64, description="The last id of the page before.")
    order: Literal["asc", "desc"] = Field("desc", description="By time of creation; newest first is `desc`.")


class ContentQuery(BaseModel):
    """Which file of a video."""

    model_config = ConfigDict(extra="forbid")

    variant: Literal["video", "thumbnail", "spritesheet"] = "video"


@router.post("/v1/videos", **documents.VIDEOS)
async def create(request: Request, owner: Owner) -> Response:
    """Make a video of a prompt: accepts the job and answers at once.

    Takes JSON, or a multipart form of text fields as OpenAI's client sends it. Poll `GET /v1/videos/{id}` until it is
    `completed`, or follow the job's events; then get `/v1/videos/{id}/content`.
    """
    gateway = gateway_of(request)
    with intake.counted_refusals(gateway):
        body, sent = await intake.read_body(request, gateway, VideosBody, forms=True)
        with told_as_size(body.size not in (None, "auto")):
            submission = await intake.submit(request, gateway, owner, body.parameters(), sent)
    return await _answer(gateway, request, submission.job)


async def _answer(gateway: Gateway, request: Request, job: Job) -> Response:
    base = gateway.base_url(request)
    outlook = await intake.outlook(gateway, job)
    answer = openai_videos.video_answer(job, _video_of(job), base, outlook.position, outlook.eta_seconds)
    return answers.model_answer(answer, 200, {"Location": answer.urls.get})


def _video_of(job: Job) -> VideoRequest:
    """The job's request; raises NotFound for one that makes something else."""
    if not isinstance(job.request, VideoRequest):
        raise NotFound(f"job {job.id} makes no video; see /v1/jobs/{job.id}")
    return job.request


async def _video(gateway: Gateway, video_id: str, owner: str) -> Job:
    job = await gateway.queue.get(video_id, owner)
    _video_of(job)
    return job


@router.get("/v1/videos", response_model=openai_videos.VideoList, responses=documents.faults(*documents.READING))
async def list_videos(request: Request, owner: Owner, wanted: Annotated[ListQuery, Query()]) -> Response:
    """This key's videos, newest first unless told otherwise."""
    gateway = gateway_of(request)
    page = await gateway.queue.list(
        owner, limit=wanted.limit, after=wanted.after, kind="video", oldest_first=wanted.order == "asc"
    )
    base = gateway.base_url(request)
    data = [openai_videos.video_answer(job, _video_of(job), base) for job in page.jobs]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return answers.model_answer(
        openai_videos.VideoList(data=data, has_more=page.has_more, first_id=ends[0], last_id=ends[1])
    )


@router.get(
    "/v1/videos/{video_id}", response_model=openai_videos.VideoAnswer, responses=documents.faults(*documents.READING)
)
async def get(request: Request, video_id: str, owner: Owner) -> Response:
    """A video as it stands."""
    gateway = gateway_of(request)
    return await _answer(gateway, request, await _video(gateway, video_id, owner))


@router.delete(
    "/v1/videos/{video_id}", response_model=openai_videos.VideoDeleted, responses=documents.faults(*documents.READING)
)
async def delete(request: Request, video_id: str, owner: Owner) -> Response:
    """Delete a video: its files and its record. One that waits or runs is canceled first."""
    gateway = gateway_of(request)
    await _video(gateway, video_id, owner)
    job = await gateway.queue.delete(video_id, owner)
    if job.result is not None:
        for token in {token_of(file.id) for file in job.result.files}:
            await asyncio.to_thread(gateway.store.discard, job.id, token)
    return answers.model_answer(openai_videos.VideoDeleted(id=job.id))


@router.get("/v1/videos/{video_id}/content", response_class=Response, **documents.CONTENT)
@router.head("/v1/videos/{video_id}/content", response_class=Response, **documents.CONTENT)
async def content(request: Request, video_id: str, owner: Owner, wanted: Annotated[ContentQuery, Query()]) -> Response:
    """A finished video's file: the video itself, a small picture of it, or a sheet of several of its frames."""
    gateway = gateway_of(request)
    job = await _video(gateway, video_id, owner)
    if job.result is None:
        raise _no_content(job)
    found = next((file for file in job.result.files if file.variant == wanted.variant), None)
    if found is None:
        made = ", ".join(file.variant for file in job.result.files)
        raise NotFound(f"this video has no {wanted.variant}; it has: {made}")
    return await send_file(gateway, request, owner, found.id)


def _no_content(job: Job) -> NoContent:
    if job.failure is not None:
        return NoContent(f"there is no video: {job.failure.message}")
    if job.state is JobState.CANCELED:
        return NoContent("there is no video: it was canceled")
    return NoContent(f"the video is not there yet: it is {job.state.value}; wait until its status is completed")
