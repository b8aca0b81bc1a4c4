"""`halftone compare --local`: a comparison by the worker's own code in this process. Knows no HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from halftone.local import Step, Steps, no_floor, no_workers, tools_here
from jobs.catalog import Catalog
from jobs.comparing import CompareParameters, CompareRequest
from jobs.files import ResultStore
from jobs.job import Job, JobState, new_job_id
from jobs.quality import Report
from service import report_page, reports
from service.admission import Admission
from service.errors import from_validation
from service.settings import Settings as GatewaySettings


@dataclass(frozen=True)
class Compared:
    """A finished comparison: everything found, and the same as one HTML page."""

    report: Report
    page: str


def decide_comparison(
    prompts: Sequence[str], asked: dict[str, Any], catalog: Catalog, settings: GatewaySettings
) -> CompareRequest:
    """The comparison that a gateway would queue.

    Raises:
        InvalidRequest, UnknownModel, UnknownProfile: as the gateway does.
    """
    try:
        parameters = CompareParameters.model_validate({"prompts": list(prompts), **asked})
    except ValidationError as fault:
        raise from_validation(fault.errors(), tuple(CompareParameters.model_fields)) from fault
    return Admission(settings, catalog, no_workers, no_floor).resolve(parameters)


def compare_here(prompts: Sequence[str], asked: dict[str, Any], on_step: Step) -> Compared:
    """Holds profiles against float in this process; `on_step` is called with (steps done, steps in all).

    Raises:
        HalftoneError: whatever a server would answer.
    """
    settings = GatewaySettings.load()
    catalog = Catalog.scan(settings)
    request = decide_comparison(prompts, asked, catalog, settings)
    from workers.compare import compare
    from workers.task import Assignment, Task

    with TemporaryDirectory(prefix="halftone-") as folder, tools_here(catalog) as tools:
        store = ResultStore(Path(folder), settings.result_ttl_seconds)
        task = Task(new_job_id(), secrets.token_hex(8))
        started = time.time()
        result = compare(task, Assignment(request, store), tools, Steps(on_step))
        job = Job(id=task.job_id, request=request, state=JobState.SUCCEEDED, created_at=started, result=result)
        with store.open(reports.report_file(job)) as file:
            report = Report.model_validate_json(file.read())
        answer = reports.report_answer(job, "", report)
        return Compared(report, report_page.page(answer, report_page.embedder(store)))
