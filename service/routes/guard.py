"""The quality guard's verdicts: what traffic says of each profile, and an operator's word against it."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service import answers, documents
from service.body import from_another_site
from service.context import gateway_of, owner_of
from service.errors import InvalidHeader
from service.guard_answers import GuardAnswer, GuardCard, guard_answer, guard_card

log = logging.getLogger("halftone.service")

router = APIRouter(tags=["Quality"])
Owner = Annotated[str, Depends(owner_of)]


@router.get("/v1/quality/guard", response_model=GuardAnswer, responses=documents.faults())
async def show(request: Request, owner: Owner) -> Response:
    """What comparisons on traffic say of each profile: estimates, histograms, evidence, verdicts and their changes."""
    gateway = gateway_of(request)
    records, events = await gateway.queue.guard.records(), await gateway.queue.guard.events()
    return answers.model_answer(guard_answer(records, events, gateway.catalog, gateway.settings))


@router.post(
    "/v1/quality/guard/{model}/{profile}/lift", response_model=GuardCard, responses=documents.faults(400, 404, 422)
)
async def lift(request: Request, model: str, profile: str, owner: Owner) -> Response:
    """Take a verdict back: the profile counts as healthy until new evidence says otherwise. Needs no body."""
    if from_another_site(request):
        raise InvalidHeader("a web page of another site cannot lift a verdict", param="Origin")
    gateway = gateway_of(request)
    card = gateway.catalog.profile(model, profile)
    record = await gateway.queue.guard.lift(card.model, card.name)
    gateway.admission.forget_records()
    log.warning("the verdict on %s/%s is lifted", model, profile)
    return answers.model_answer(guard_card(record, gateway.catalog))
