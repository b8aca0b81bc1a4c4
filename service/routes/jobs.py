"""/v1/jobs: submit, look, follow, cancel, list. The native way in; the OpenAI route is a view of the same jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.events import parse_event_id
from jobs.job import Job, JobState
from service import answers, documents, intake, streaming
from service.context import Gateway, gateway_of, owner_of

router = APIRouter(tags=["Jobs"])
Owner = Annotated[str, Depends(owner_of)]


class Page(BaseModel):
    """How much of a list; unknown query parameters are refused, as unknown fields are."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100, description="How many at most.")


class ListQuery(Page):
    """Which jobs."""

    after: str | None = Field(None, max_length=64, description="The last id of the page before.")
    status: JobState | None = Field(None, description="Only jobs that stand so.")


@router.post("/v1/jobs", **documents.SUBMIT_JOB)
async def submit(request: Request, owner: Owner) -> Response:
    """Accept a job and answer at once. An `Idempotency-Key` makes a repeat safe."""
    return await _submit(request, owner, None)


@router.put("/v1/jobs/{job_id}", **documents.PUT_JOB)
async def put(request: Request, job_id: str, owner: Owner) -> Response:
    """Accept a job under an id of the client's choice (32 hexadecimal digits): sent again, it is the same job."""
    return await _submit(request, owner, job_id)


async def _submit(request: Request, owner: str, job_id: str | None) -> Response:
    gateway = gateway_of(request)
    with intake.counted_refusals(gateway):
        parameters, sent = await intake.read_parameters(request, gateway)
        submission = await intake.submit(request, gateway, owner, parameters, sent, job_id)
    status = 202 if submission.created or job_id is None else 200
    return await _answer(gateway, request, submission.job, status)


async def _answer(gateway: Gateway, request: Request, job: Job, status: int = 200) -> Response:
    outlook = await intake.outlook(gateway, job)
    answer = answers.job_answer(job, gateway.base_url(request), outlook.position, outlook.eta_seconds)
    return answers.model_answer(answer, status, {"Location": answer.urls.get})


@router.get("/v1/jobs", response_model=answers.JobList, responses=documents.faults(*documents.READING))
async def list_jobs(request: Request, owner: Owner, wanted: Annotated[ListQuery, Query()]) -> Response:
    """This key's jobs, newest first."""
    gateway = gateway_of(request)
    page = await gateway.queue.list(owner, limit=wanted.limit, after=wanted.after, state=wanted.status)
    base = gateway.base_url(request)
    data = [answers.job_answer(job, base) for job in page.jobs]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return answers.model_answer(answers.JobList(data=data, has_more=page.has_more, first_id=ends[0], last_id=ends[1]))


@router.get("/v1/jobs/{job_id}", response_model=answers.JobAnswer, responses=documents.faults(*documents.READING))
async def get(request: Request, job_id: str, owner: Owner) -> Response:
    """A job as it stands."""
    gateway = gateway_of(request)
    return await _answer(gateway, request, await gateway.queue.get(job_id, owner))


@router.post(
    "/v1/jobs/{job_id}/cancel",
    response_model=answers.JobAnswer,
    responses=documents.faults(*documents.READING, 409),
)
async def cancel(request: Request, job_id: str, owner: Owner) -> Response:
    """Stop a job. A queued one is canceled when this answers; a running one is once its worker has stopped it."""
    gateway = gateway_of(request)
    return await _answer(gateway, request, await gateway.queue.cancel(job_id, owner))


@router.get("/v1/jobs/{job_id}/events", response_class=Response, **documents.EVENTS)
async def events(
    request: Request,
    job_id: str,
    owner: Owner,
    last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Follow a job: queued, started, progress, preview, requeued, and at last succeeded, failed or canceled.

    A stream lives 30 minutes at most, says `: ping` in silences, and resumes after the id in `Last-Event-ID`.
    """
    gateway = gateway_of(request)
    after = parse_event_id(last_event_id) if last_event_id else "0"
    job = await gateway.queue.get(job_id, owner)
    if job.state.final and not await gateway.events.read(job.id, after):
        return Response(status_code=204)
    return streaming.EventStream(gateway, owner, streaming.job_frames(gateway, job.id, after))


@router.get("/v1/dead-letters", response_model=answers.DeadLetterList, responses=documents.faults(422))
async def dead_letters(request: Request, owner: Owner, wanted: Annotated[Page, Query()]) -> Response:
    """Jobs that were given up on because they killed their worker, or never came to an end; newest first."""
    gateway = gateway_of(request)
    letters = await gateway.queue.dead_letters(wanted.limit)
    data: list[dict[str, Any]] = []
    for letter in letters:
        if not gateway.keys.required or await intake.exists(gateway, owner, letter.job_id):
            data.append(letter.model_dump(mode="json"))
    return answers.model_answer(answers.DeadLetterList(data=data))
