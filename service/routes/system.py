"""What there is and how it stands: models, profiles, capabilities, health, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from jobs import request as bounds
from jobs.errors import HalftoneError, Unavailable
from jobs.pareto import marked
from jobs.records import WorkerInfo
from service import answers, body, documents
from service.context import Gateway, gateway_of, owner_of

router = APIRouter()
Owner = Annotated[str, Depends(owner_of)]
PROBE_SECONDS = 2.0


class ProfileQuery(BaseModel):
    """Whose profiles."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, max_length=128, description="Only this model's.")


@router.get("/v1/models", tags=["OpenAI-compatible"], response_model=answers.ModelList, responses=documents.faults())
async def models(request: Request, _: Owner) -> Response:
    """Every model, with its defaults and limits."""
    cards = gateway_of(request).catalog.models
    return answers.model_answer(answers.ModelList(data=[answers.card_answer(cards[name]) for name in sorted(cards)]))


@router.get(
    "/v1/models/{model_id}",
    tags=["OpenAI-compatible"],
    response_model=answers.ModelAnswer,
    responses=documents.faults(404),
)
async def model(request: Request, model_id: str, _: Owner) -> Response:
    """One model."""
    return answers.model_answer(answers.card_answer(gateway_of(request).catalog.card(model_id)))


@router.get(
    "/v1/profiles", tags=["Models"], response_model=answers.ProfileList, responses=documents.faults(*documents.READING)
)
async def profiles(request: Request, _: Owner, wanted: Annotated[ProfileQuery, Query()]) -> Response:
    """The quantization profiles a request may choose: bits, bytes, fidelity to float as measured, and which of them no
    other one beats.
    """
    catalog = gateway_of(request).catalog
    cards = (
        [catalog.card(wanted.model)]
        if wanted.model is not None
        else [catalog.models[name] for name in sorted(catalog.models)]
    )
    return answers.model_answer(answers.ProfileList(data=[one for card in cards for one in marked(card.profiles)]))


@router.get("/v1/capabilities", tags=["Models"], responses=documents.faults())
async def capabilities(request: Request, _: Owner) -> Response:
    """What this service can do and where its bounds lie, for programs that ask before they send."""
    return answers.json_answer(_capabilities(gateway_of(request)))


def _capabilities(gateway: Gateway) -> dict[str, Any]:
    settings, cards = gateway.settings, gateway.catalog.models
    return {
        "object": "capabilities",
        "kinds": list(get_args(bounds.Kind)),
        "default_model": settings.default_model,
        "default_video_model": settings.default_video_model,
        "models": {name: [profile.name for profile in card.profiles] for name, card in sorted(cards.items())},
        "schedulers": {name: _scheduler(card.folder) for name, card in sorted(cards.items())},
        "output_formats": list(get_args(bounds.OutputFormat)),
        "video_output_formats": list(get_args(bounds.VideoFormat)),
        "response_formats": ["url", "b64_json"],
        "priorities": [priority.value for priority in bounds.Priority],
        "features": {
            "streaming": True,
            "partial_images": True,
            "respond_async": True,
            "idempotency_key": True,
            "cancel_running": True,
            "negative_prompt": True,
            "per_request_profile": True,
            "ranges": True,
            "api_keys": gateway.keys.required,
        },
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_json_depth": body.MAX_DEPTH,
            "max_json_keys": body.MAX_KEYS,
            "max_prompt_characters": 2000,
            "max_prompt_bytes": bounds.MAX_PROMPT_BYTES,
            "max_pictures": 4,
            "max_seed": bounds.MAX_SEED,
            "max_partial_images": 3,
            "max_job_seconds": settings.max_job_seconds,
            "max_video_seconds": settings.max_video_seconds,
            "max_video_pixels": settings.max_video_pixels,
            "max_queue": settings.max_queue,
            "max_queued_per_key": settings.max_queued_per_key,
            "sync_wait_seconds": settings.sync_wait_seconds,
            "result_ttl_seconds": settings.result_ttl_seconds,
        },
    }


def _scheduler(folder: Path | None) -> str | None:
    """The scheduler's class as the model's own folder names it; None where there is none to read."""
    file = folder / "scheduler" / "scheduler_config.json" if folder is not None else None
    if file is None or not file.is_file():
        return None
    name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    return str(name) if name is not None else None


@router.get("/healthz", tags=["System"], response_model=answers.Health)
async def healthz() -> Response:
    """The process answers. Asks nobody else: a restart would not mend Redis."""
    return answers.model_answer(answers.Health())


@router.get(
    "/readyz",
    tags=["System"],
    response_model=answers.Readiness,
    responses={503: {"model": answers.Readiness, "description": "STARTING or DRAINING."}},
)
async def readyz(request: Request) -> Response:
    """Whether a job would be accepted now: Redis takes writes and a worker lives. BUSY is ready, with a wait."""
    gateway = gateway_of(request)
    reasons: list[str] = []
    workers: Sequence[WorkerInfo] = ()
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await gateway.queue.probe()
            workers = await gateway.queue.workers()
    except TimeoutError:
        reasons.append(f"the queue did not answer within {PROBE_SECONDS:.0f} s")
    except HalftoneError as fault:
        reasons.append(fault.message)
    live = [worker for worker in workers if worker.state == "ready"]
    if not reasons and not live:
        reasons.append("no worker is ready")
    state = _state(gateway.draining, reasons, live)
    ready = state in ("READY", "BUSY")
    answer = answers.Readiness(status=state, ready=ready, reasons=reasons, workers=len(live))
    return answers.model_answer(answer, 200 if ready else 503, {} if ready else {"Retry-After": "2"})


def _state(
    draining: bool, reasons: list[str], live: Sequence[WorkerInfo]
) -> Literal["STARTING", "READY", "BUSY", "DRAINING"]:
    if draining:
        return "DRAINING"
    if reasons:
        return "STARTING"
    return "READY" if any(worker.room > 0 for worker in live) else "BUSY"


@router.get("/metrics", tags=["System"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics; the queue's are read from Redis at this moment."""
    gateway = gateway_of(request)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            stats, workers, records = await asyncio.gather(
                gateway.queue.stats(), gateway.queue.workers(), gateway.queue.guard.records()
            )
        gateway.metrics.queue.show(stats, workers)
        gateway.metrics.guard.show(records)
    except (TimeoutError, Unavailable):
        gateway.metrics.queue.hide()
        gateway.metrics.guard.hide()
    return Response(gateway.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
