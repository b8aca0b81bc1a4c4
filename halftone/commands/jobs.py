"""`halftone jobs`: list, show, cancel and watch jobs. Knows the client only."""

from __future__ import annotations

from typing import Annotated

import typer

from halftone import render
from halftone.options import ApiKey, Json, Url, connected
from jobs.job import JobState

jobs = typer.Typer(no_args_is_help=True, help="List, show, cancel and watch jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


@jobs.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many at most.")] = 20,
    after: Annotated[str | None, typer.Option(help="Only jobs older than the one with this id.")] = None,
    status: Annotated[JobState | None, typer.Option(help="Only jobs of this status.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    with connected(url, api_key) as client:
        page = client.jobs(limit=limit, after=after, status=status.value if status else None)
    if json:
        render.emit_json(page)
        return
    render.emit_table(render.JOB_COLUMNS, map(render.job_row, page.data))
    if page.has_more:
        render.note(f"There are more: halftone jobs list --after {page.data[-1].id}")


@jobs.command()
def show(job: JobId, url: Url = None, api_key: ApiKey = None, json: Json = False) -> None:
    """Show one job."""
    with connected(url, api_key) as client:
        found = client.job(job)
    if json:
        render.emit_json(found)
    else:
        render.emit_line("\n".join(render.job_lines(found)))


@jobs.command()
def cancel(job: JobId, url: Url = None, api_key: ApiKey = None, json: Json = False) -> None:
    """Cancel a job; a running one stops within two steps."""
    with connected(url, api_key) as client:
        found = client.cancel(job)
    if json:
        render.emit_json(found)
    else:
        state = "canceled" if found.status is JobState.CANCELED else f"{found.status}; it is being canceled"
        render.emit_line(f"{job} is {state}")


@jobs.command()
def watch(
    job: JobId,
    after: Annotated[str | None, typer.Option(help="Start after the event with this id.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    json: Json = False,
) -> None:
    """Print a job's events until it is over; with --json one document a line."""
    with connected(url, api_key) as client:
        for event in client.watch(job, after=after):
            if json:
                render.emit_json_line({"id": event.id, "type": event.type, "data": dict(event.data)})
            else:
                render.emit_line(render.event_line(event))
