"""From a request's body to a job in the queue: read, check, admit, enqueue, count. Shared by both ways to submit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from jobs.errors import DiskFull, HalftoneError, NotFound, NoWorker
from jobs.records import Submission
from jobs.request import ImageParameters, ImageRequest
from service.body import read_object
from service.context import Gateway
from service.errors import InvalidHeader, from_validation

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


async def read_body(request: Request, gateway: Gateway, model: type[Body]) -> tuple[Body, dict[str, Any]]:
    """The request's body, checked, and as it was sent; raises InvalidRequest and its kin."""
    sent = await read_object(request, gateway.settings.max_body_bytes)
    try:
        return model.model_validate(sent), sent
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False), known=list(model.model_fields)) from None


async def submit(
    request: Request,
    gateway: Gateway,
    owner: str,
    parameters: ImageParameters,
    sent: dict[str, Any],
    job_id: str | None = None,
) -> Submission:
    """Admit and enqueue. `sent` is what makes two submits under one id or Idempotency-Key the same."""
    key = _idempotency_key(request)
    decided = await _admit(gateway, owner, parameters, job_id)
    submission = await gateway.queue.submit(decided, job_id=job_id, owner=owner, idempotency_key=key, body=sent)
    if submission.created:
        gateway.metrics.accepted(decided)
    else:
        gateway.metrics.repeated.inc()
    return submission


async def _admit(gateway: Gateway, owner: str, parameters: ImageParameters, job_id: str | None) -> ImageRequest:
    try:
        return await gateway.admission.admit(parameters)
    except (NoWorker, DiskFull) as fault:
        # a repeat of an accepted job asks for nothing new, so it is answered even when new ones could not be
        if job_id is None or not await exists(gateway, owner, job_id):
            raise fault
        return gateway.admission.resolve(parameters)


async def exists(gateway: Gateway, owner: str, job_id: str) -> bool:
    """Whether the owner has such a job."""
    try:
        await gateway.queue.get(job_id, owner)
    except NotFound:
        return False
    return True


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidHeader("Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 _ -", param="Idempotency-Key")
    return key
