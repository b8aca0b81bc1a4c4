"""/v1/quality: compare profiles with float, and read the reports. A comparison is a job; knows no metric."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from jobs.comparing import CompareParameters
from jobs.errors import JobFailed, TimedOut
from jobs.job import Job, JobState
from service import answers, documents, errors, intake, report_page, reports, waiting
from service.context import Gateway, gateway_of, owner_of
from service.errors import NoContent
from service.routes.jobs import Page

router = APIRouter(tags=["Quality"])
Owner = Annotated[str, Depends(owner_of)]
_QUALITY = re.compile(r"[01](\.[0-9]{0,3})?")
"""RFC 9110's qvalue."""


class ListQuery(Page):
    """Which reports."""

    after: str | None = Field(None, max_length=64, description="The last id of the page before.")
    status: JobState | None = Field(None, description="Only comparisons that stand so.")


class FormQuery(BaseModel):
    """In which form."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["json", "html"] | None = Field(None, description="By the Accept header when left out.")


@router.post("/v1/quality/compare", **documents.COMPARE)
async def compare(request: Request, owner: Owner) -> Response:
    """Hold profiles against float: the same prompts, seeds and initial noise through float and each profile.

    Waits for the report; with `Prefer: respond-async` it answers 202 and a job at once, whose id is the report's. Runs
    at low priority unless told otherwise. A request whose client goes away cancels it, unless it carried an
    `Idempotency-Key`.
    """
    gateway = gateway_of(request)
    with intake.counted_refusals(gateway):
        parameters, sent = await intake.read_body(request, gateway, CompareParameters)
        job = (await intake.submit(request, gateway, owner, parameters, sent)).job
    base = gateway.base_url(request)
    location = {"Location": f"{base}/v1/quality/reports/{job.id}"}
    if intake.prefers_async(request):
        outlook = await intake.outlook(gateway, job)
        headers = location | {"Preference-Applied": "respond-async"}
        return answers.model_answer(answers.job_answer(job, base, outlook.position, outlook.eta_seconds), 202, headers)
    try:
        stays = "idempotency-key" in request.headers
        await waiting.result_of(gateway, request, job, cancel_when_gone=not stays)
    except (JobFailed, TimedOut) as fault:
        return errors.respond(fault, location)
    done = await gateway.queue.get(job.id, owner)
    return answers.model_answer(await _answer(gateway, base, done), headers=location)


async def _answer(gateway: Gateway, base: str, job: Job) -> reports.ReportAnswer:
    return reports.report_answer(job, base, await reports.read_report(gateway.store, job))


@router.get("/v1/quality/reports", response_model=reports.ReportList, responses=documents.faults(*documents.READING))
async def list_reports(request: Request, owner: Owner, wanted: Annotated[ListQuery, Query()]) -> Response:
    """This key's comparisons, newest first, each with its verdicts."""
    gateway = gateway_of(request)
    page = await gateway.queue.list(owner, limit=wanted.limit, after=wanted.after, state=wanted.status, kind="compare")
    base = gateway.base_url(request)
    data = [reports.report_answer(job, base) for job in page.jobs]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    listed = reports.ReportList(data=data, has_more=page.has_more, first_id=ends[0], last_id=ends[1])
    return answers.model_answer(listed)


@router.get("/v1/quality/reports/{report_id}", **documents.REPORT)
async def get_report(request: Request, report_id: str, owner: Owner, wanted: Annotated[FormQuery, Query()]) -> Response:
    """A comparison and, once it has succeeded, its report: as JSON, or as one page with all pictures inside.

    The page comes for `?format=html`, and to who accepts text/html before JSON, as browsers do.
    """
    gateway = gateway_of(request)
    job = await gateway.queue.get(report_id, owner)
    answer = await _answer(gateway, gateway.base_url(request), job)
    vary = {"Vary": "Accept"}
    if (wanted.format or _preferred(request)) == "json":
        return answers.model_answer(answer, headers=vary)
    if answer.report is None:
        raise NoContent(f"comparison {job.id} is {job.state.value} and has no report to show; ask for format=json")
    text = await asyncio.to_thread(report_page.page, answer, report_page.embedder(gateway.store))
    headers = vary | {"Content-Security-Policy": report_page.POLICY}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")


def _preferred(request: Request) -> str:
    """`html` for who ranks text/html above JSON."""
    ranks = {"text/html": 0.0, "application/json": 0.0, "*/*": 0.0}
    for part in ",".join(request.headers.getlist("accept")).lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        if kind in ranks:
            ranks[kind] = float(quality) if _QUALITY.fullmatch(quality) else 0.0
    return "html" if ranks["text/html"] > max(ranks["application/json"], ranks["*/*"]) else "json"
