"""From a request's body to a job in the queue: read, check, admit, enqueue, count. Shared by all ways to submit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from jobs.errors import DiskFull, HalftoneError, InvalidRequest, NotFound, NoWorker, QueueFull
from jobs.job import Job
from jobs.records import Submission
from jobs.request import PARAMETERS, AnyParameters, AnyRequest
from service.body import read_object
from service.context import Gateway
from service.errors import InvalidHeader, from_validation
from service.forecast import Outlook
from service.forms import is_form, read_form

_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
Body = TypeVar("Body", bound=BaseModel)


@contextmanager
def counted_refusals(gateway: Gateway) -> Iterator[None]:
    """Count any fault that passes as a refused submit."""
    try:
        yield
    except HalftoneError as fault:
        gateway.metrics.refused(fault)
        raise


async def read_body(
    request: Request, gateway: Gateway, model: type[Body], *, forms: bool = False
) -> tuple[Body, dict[str, Any]]:
    """The request's body, checked, and as it was sent; raises InvalidRequest and its kin.

    `forms` takes multipart forms too: what they say is text, so numbers are read from it.
    """
    if forms and is_form(request):
        fields = await read_form(request, gateway.settings.max_body_bytes)
        return _checked(model, fields, strict=False), dict(fields)
    sent = await read_object(request, gateway.settings.max_body_bytes)
    return _checked(model, sent), sent


async def read_parameters(request: Request, gateway: Gateway) -> tuple[AnyParameters, dict[str, Any]]:
    """The same for a body whose `kind` says which fields it has; pictures are meant where it says none."""
    sent = await read_object(request, gateway.settings.max_body_bytes)
    kind = sent.get("kind", "image")
    model = PARAMETERS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise InvalidRequest(f"kind: must be one of {', '.join(map(repr, PARAMETERS))}", param="kind")
    return _checked(model, sent), sent


def _checked(model: type[Body], sent: dict[str, Any], *, strict: bool | None = None) -> Body:
    try:
        return model.model_validate(sent, strict=strict)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False), known=list(model.model_fields)) from None


async def outlook(gateway: Gateway, job: Job) -> Outlook:
    """How a job stands in the queue."""
    return await gateway.forecast.of(job)


async def submit(
    request: Request,
    gateway: Gateway,
    owner: str,
    parameters: AnyParameters,
    sent: dict[str, Any],
    job_id: str | None = None,
) -> Submission:
    """Admit and enqueue. `sent` is what makes two submits under one id or Idempotency-Key the same."""
    key = _idempotency_key(request)
    decided = await _admit(gateway, owner, parameters, job_id)
    submission = await gateway.queue.submit(
        decided,
        job_id=job_id,
        owner=owner,
        idempotency_key=key,
        body=sent,
        estimate=gateway.admission.costs.estimate(decided),
        room_in=await gateway.forecast.room_in(decided.lane),
    )
    if submission.created:
        gateway.metrics.accepted(decided)
    else:
        gateway.metrics.repeated.inc()
    return submission


async def _admit(gateway: Gateway, owner: str, parameters: AnyParameters, job_id: str | None) -> AnyRequest:
    await gateway.forecast.refresh()
    try:
        decided = await gateway.admission.admit(parameters)
        await _check_wait(gateway, decided)
        return decided
    except (NoWorker, DiskFull, QueueFull) as fault:
        # a repeat of an accepted job asks for nothing new, so it is answered even when new ones could not be
        if job_id is None or not await exists(gateway, owner, job_id):
            raise fault
        return await gateway.admission.decide(parameters)


async def _check_wait(gateway: Gateway, request: AnyRequest) -> None:
    """Raises QueueFull for a job that would expire before its turn comes."""
    most = gateway.settings.queue_wait_seconds
    wait = await gateway.forecast.wait(request)
    if wait is not None and wait > most:
        raise QueueFull(
            f"about {wait:.0f} s of work are ahead, and jobs wait {most:.0f} s at most; "
            f"try again in {wait - most:.0f} s",
            retry_after=round(wait - most, 3),
        )


async def exists(gateway: Gateway, owner: str, job_id: str) -> bool:
    """Whether the owner has such a job."""
    try:
        await gateway.queue.get(job_id, owner)
    except NotFound:
        return False
    return True


def prefers_async(request: Request) -> bool:
    """Whether the client wants a job now and no answer later (RFC 7240)."""
    preferences = ",".join(request.headers.getlist("prefer")).lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in preferences)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidHeader("Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 _ -", param="Idempotency-Key")
    return key
