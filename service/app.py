"""Puts the gateway together: the parts that routes share, and the application around the routes. Knows no policy."""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from jobs.catalog import Catalog
from jobs.connection import connect, resolve
from jobs.events import EventLog
from jobs.files import ResultStore
from jobs.queue import JobQueue
from service import documents, errors
from service.admission import Admission
from service.auth import Keys
from service.context import Gateway
from service.edge import Edge
from service.forecast import Forecast
from service.metrics import Metrics
from service.routes import files, guard, images, jobs, quality, system, videos
from service.settings import Settings

log = logging.getLogger("halftone.service")

REDIS_RETRIES = 6
"""Few, about 0.7 s in all: enough for the embedded Redis to come back; after that a quick 503 serves better."""

_DESCRIPTION = """
Self-hosted image and video generation in which every request chooses how hard the model is compressed (`profile`).
`POST /v1/images/generations` and `/v1/videos` have OpenAI's shape and work with the official client; `/v1/jobs` is the
native way.
Errors are always `{"error": {"message", "type", "param", "code"}}`; 429 and 503 carry `Retry-After`.
"""


def open_gateway(settings: Settings) -> Gateway:
    """Everything that the routes share. Call inside a running event loop; connects to Redis at the first use.

    Raises `Unavailable` when there is no Redis to use at all.
    """
    redis = connect(resolve(settings), retries=REDIS_RETRIES)
    queue = JobQueue(redis, settings)
    store = ResultStore.of(settings)
    catalog = Catalog.scan(settings)
    if settings.default_model not in catalog.models:
        log.warning("the default model %r is not there; known: %s", settings.default_model, sorted(catalog.models))
    loop = asyncio.get_running_loop()
    admission = Admission(settings, catalog, queue.workers, store.check_floor, queue.guard.records)
    return Gateway(
        settings=settings,
        redis=redis,
        queue=queue,
        events=EventLog(redis, settings),
        store=store,
        catalog=catalog,
        admission=admission,
        forecast=Forecast(queue, admission.costs, admission.live_workers, settings.ageing_seconds),
        keys=Keys(settings.api_key_hashes),
        metrics=Metrics(),
        closing=loop.create_future(),
        last_call=loop.create_future(),
    )


def create_api(gateway: Gateway | None = None) -> FastAPI:
    """The routes with their documentation; without a gateway it can only describe itself."""
    api = FastAPI(
        title="Halftone", version=_version(), description=_DESCRIPTION, redoc_url=None, redirect_slashes=False
    )
    api.state.gateway = gateway
    for group in (images, videos, jobs, guard, quality, system, files):
        api.include_router(group.router)
    errors.install(api)
    documents.describe(api)
    return api


def create_app(gateway: Gateway) -> Edge:
    """The whole application, as the server runs it."""
    return Edge(create_api(gateway), gateway)


def _version() -> str:
    try:
        return version("halftone")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0"
