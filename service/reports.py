"""Reports of comparisons as the API tells them: a job, its report file read, links filled in. Knows no request."""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import BaseModel, Field

from jobs.comparing import CompareRequest
from jobs.errors import Expired, NotFound
from jobs.files import ResultStore
from jobs.job import Costs, Failure, Job, JobState
from jobs.quality import Compared, FloatReport, ProfileReport, Report, Shown, Summary
from service.answers import file_url


class ReportUrls(BaseModel):
    """Where a report is as JSON and as a page, and the job that makes it."""

    get: str
    html: str
    job: str


class ReportAnswer(BaseModel):
    """A comparison as users see it. Times are Unix seconds."""

    id: str
    object: Literal["quality.report"] = "quality.report"
    status: JobState
    model: str
    profiles: list[str]
    created_at: float
    finished_at: float | None
    expires_at: float | None = Field(description="When the report and its pictures go.")
    summary: list[Summary] = Field(description="Each profile's verdict; empty until the comparison has succeeded.")
    costs: Costs | None
    error: Failure | None
    urls: ReportUrls
    report: Report | None = Field(None, description="Everything found; null in lists and until it has succeeded.")


class ReportList(BaseModel):
    """A page of comparisons, newest first, without their reports."""

    object: Literal["list"] = "list"
    data: list[ReportAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None = Field(description="Pass as `after` to get the next page.")


def asked_of(job: Job) -> CompareRequest:
    """The comparison that a job runs; raises NotFound for one that does something else."""
    if not isinstance(job.request, CompareRequest):
        raise NotFound(f"job {job.id} is no comparison; see /v1/jobs/{job.id}")
    return job.request


def report_answer(job: Job, base: str, report: Report | None = None) -> ReportAnswer:
    """A comparison, with its report where there is one."""
    asked, own = asked_of(job), f"{base}/v1/quality/reports/{job.id}"
    return ReportAnswer(
        id=job.id,
        status=job.state,
        model=asked.model,
        profiles=list(asked.profiles),
        created_at=job.created_at,
        finished_at=job.finished_at,
        expires_at=job.expires_at,
        summary=[] if job.result is None else list(job.result.comparison),
        costs=None if job.result is None else job.result.costs,
        error=job.failure,
        urls=ReportUrls(get=own, html=f"{own}?format=html", job=f"{base}/v1/jobs/{job.id}"),
        report=None if report is None else linked(report, base),
    )


async def read_report(store: ResultStore, job: Job) -> Report | None:
    """The report that a job made; None for one that has not succeeded. Raises Expired when its time is over."""
    if job.result is None:
        return None
    file_id = report_file(job)
    try:
        return await asyncio.to_thread(_read, store, file_id)
    except NotFound:
        raise Expired("the report has expired; compare again") from None


def report_file(job: Job) -> str:
    """The id of a succeeded comparison's report file."""
    asked_of(job)
    found = [file.id for file in (() if job.result is None else job.result.files) if file.variant == "report"]
    if not found:
        raise NotFound(f"comparison {job.id} has no report")
    return found[0]


def _read(store: ResultStore, file_id: str) -> Report:
    with store.open(file_id) as file:
        return Report.model_validate_json(file.read())


def linked(report: Report, base: str) -> Report:
    """The report with the address of every file."""
    reference: FloatReport = report.reference.model_copy(
        update={"pictures": tuple(_shown(one, base) for one in report.reference.pictures)}
    )
    profiles: tuple[ProfileReport, ...] = tuple(
        one.model_copy(update={"pictures": tuple(_compared(picture, base) for picture in one.pictures)})
        for one in report.profiles
    )
    return report.model_copy(update={"reference": reference, "profiles": profiles})


def _shown(picture: Shown, base: str) -> Shown:
    return picture.model_copy(update={"url": file_url(base, picture.file)})


def _compared(picture: Compared, base: str) -> Compared:
    links = {"url": file_url(base, picture.file), "difference_url": file_url(base, picture.difference)}
    return picture.model_copy(update=links)
