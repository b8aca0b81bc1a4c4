"""POST /v1/images/generations: OpenAI's image route on top of jobs: a request is one job. Knows no model."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from jobs.errors import HalftoneError, InvalidRequest, JobFailed, TimedOut
from jobs.events import Event
from jobs.job import Job, JobResult, ResultFile
from jobs.records import Submission
from jobs.request import GenerationRequest, ImageRequest
from service import answers, documents, errors, intake, streaming, waiting
from service.context import Gateway, gateway_of, owner_of
from service.openai_images import ImagesBody, told_as_size

router = APIRouter(tags=["OpenAI-compatible"])

_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""OpenAI's completed event must carry a usage; nothing is counted in tokens here."""


@router.post("/v1/images/generations", **documents.IMAGES)
async def generate(request: Request, owner: Annotated[str, Depends(owner_of)]) -> Response:
    """Make pictures of a prompt.

    Waits for the pictures and answers with them. With `Prefer: respond-async` it answers 202 and a job at once; with
    `stream: true` it answers with server-sent events. A request whose client goes away cancels its job, unless it
    carried an `Idempotency-Key`: who sends one means to come back.
    """
    gateway = gateway_of(request)
    with intake.counted_refusals(gateway):
        body, sent = await intake.read_body(request, gateway, ImagesBody)
        later = intake.prefers_async(request)
        if later and body.streams:
            raise InvalidRequest("stream and Prefer: respond-async exclude each other", param="stream")
        job = (await _submit(request, gateway, owner, body, sent)).job
    base = gateway.base_url(request)
    location = {"Location": f"{base}/v1/jobs/{job.id}"}
    if later:
        outlook = await intake.outlook(gateway, job)
        headers = location | {"Preference-Applied": "respond-async"}
        return answers.model_answer(answers.job_answer(job, base, outlook.position, outlook.eta_seconds), 202, headers)
    stays = "idempotency-key" in request.headers
    if body.streams:
        return streaming.EventStream(gateway, owner, _frames(gateway, base, job, stays))
    try:
        result = await waiting.result_of(gateway, request, job, cancel_when_gone=not stays)
    except (JobFailed, TimedOut) as fault:
        return errors.respond(fault, location)
    pictures = [await _picture(gateway, base, file, body.inline) for file in result.files]
    return answers.model_answer(_answer(job, result, pictures), headers=location)


async def _submit(request: Request, gateway: Gateway, owner: str, body: ImagesBody, sent: dict[str, Any]) -> Submission:
    with told_as_size(True):
        return await intake.submit(request, gateway, owner, body.parameters(), sent)


async def _picture(gateway: Gateway, base: str, file: ResultFile, inline: bool) -> answers.Picture:
    if not inline:
        return answers.Picture(url=answers.file_url(base, file.id), seed=file.seed)
    return answers.Picture(b64_json=await _inline(gateway, file), seed=file.seed)


async def _inline(gateway: Gateway, file: ResultFile) -> str:
    return await asyncio.to_thread(_read_inline, gateway, file.id)


def _read_inline(gateway: Gateway, file_id: str) -> str:
    with gateway.store.open(file_id) as file:
        return base64.b64encode(file.read()).decode("ascii")


def _answer(job: Job, result: JobResult, pictures: list[answers.Picture]) -> answers.ImagesAnswer:
    return answers.ImagesAnswer(
        created=int(job.created_at),
        data=pictures,
        output_format=_asked(job).output_format,
        size=_size(_asked(job)),
        halftone=_extras(job, result),
    )


def _extras(job: Job, result: JobResult) -> answers.Extras:
    return answers.Extras(
        job_id=job.id, used=result.used, costs=result.costs, notices=list(result.notices), choice=job.request.choice
    )


def _asked(job: Job) -> ImageRequest:
    """What a job of this route was asked."""
    if not isinstance(job.request, ImageRequest):
        raise TypeError(f"job {job.id} is of kind {job.request.kind!r}, not one of pictures")
    return job.request


def _size(request: GenerationRequest) -> str:
    return f"{request.width}x{request.height}"


async def _frames(gateway: Gateway, base: str, job: Job, stays: bool) -> AsyncGenerator[bytes, None]:
    """The job's events in OpenAI's words: previews, then one completed event a picture, or an error."""
    unanswered = True
    try:
        if job.state.final:  # a repeat, told from the record: its events may be gone
            unanswered = False
            result = waiting.result_or_fault(job.state, job.result, job.failure)
            for part in await _completed(gateway, base, job, result, None):
                yield part
            return
        async with aclosing(streaming.follow(gateway, job.id)) as events:
            async for event in events:
                if event is None:
                    yield streaming.PING
                elif event.type == "preview":
                    yield _partial(job, event)
                elif event.final:
                    unanswered = False
                    for part in await _completed(gateway, base, job, waiting.read_final(event), event.id):
                        yield part
        if unanswered:
            unanswered = False
            raise TimedOut(f"the stream ends here and the job goes on: ask GET /v1/jobs/{job.id}")
    except HalftoneError as fault:
        yield streaming.frame("error", errors.envelope(fault))
    finally:
        if unanswered and not stays and not gateway.draining:
            gateway.errand(waiting.abandon(gateway, job.id), f"cancel of job {job.id}")


def _common(request: GenerationRequest, kind: str, b64: str, output_format: str) -> dict[str, Any]:
    """The fields that both of OpenAI's events have."""
    return {
        "type": kind,
        "b64_json": b64,
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": output_format,
        "quality": "auto",
        "size": _size(request),
    }


def _partial(job: Job, event: Event) -> bytes:
    kind = "image_generation.partial_image"
    output_format = str(event.data["mime"]).removeprefix("image/")
    common = _common(_asked(job), kind, event.data["b64"], output_format)
    return streaming.frame(kind, common | {"partial_image_index": event.data["index"]}, event.id)


async def _completed(gateway: Gateway, base: str, job: Job, result: JobResult, event_id: str | None) -> list[bytes]:
    kind = "image_generation.completed"
    own = {"usage": _NO_TOKENS, "halftone": _extras(job, result).model_dump(mode="json")}
    frames = []
    for file in result.files:
        common = _common(_asked(job), kind, await _inline(gateway, file), _asked(job).output_format)
        link = {"url": answers.file_url(base, file.id), "seed": file.seed}
        frames.append(streaming.frame(kind, common | own | link, event_id))
    return frames
