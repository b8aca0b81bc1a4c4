"""Puts the device child's parts together: hub, turns, residents, meters. Importing it imports torch and diffusers."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

import torch

from jobs.catalog import Catalog
from pipelines.load import quiet
from workers.generate import Tools
from workers.guard import Guard
from workers.hub import Batch, Hub
from workers.judges import Judges
from workers.loading import ModelLoader
from workers.memory import PeakMeter
from workers.messages import BatchRan, Evicted, FromChild, Loaded, Resized
from workers.presence import Presence
from workers.residents import Departure, Event, Growth, Residents
from workers.settings import WorkerSettings
from workers.turns import Turns

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter: jobs' scheduler steps must not hold up the hub for Python's 5 ms."""


def open_engine(catalog: Catalog, settings: WorkerSettings, send: Callable[[FromChild], None]) -> Tools:
    """Starts the hub; nothing is loaded yet. `send` gets what the parts report, on their threads."""
    started = time.monotonic()
    quiet()
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    sys.setswitchinterval(SWITCH_SECONDS)
    turns = Turns()
    hub = Hub(turns, lambda batch: send(_batch_ran(batch)))
    loader = ModelLoader(catalog, settings, hub, turns, device_name())
    residents = Residents(loader, settings.memory_budget_bytes, lambda event: send(_moved(event)))
    judges = Judges(settings.lpips_dir, settings.clip_dir)
    users = Presence()
    guard = Guard(settings, catalog, residents, hub, turns, users, send)
    hub.start()
    guard.start()
    log.info("engine on %s, %d threads, in %.2f s", device_name(), torch.get_num_threads(), time.monotonic() - started)
    return Tools(residents=residents, hub=hub, turns=turns, peaks=PeakMeter(), judges=judges, users=users, guard=guard)


def device_name() -> str:
    """Where models run: `cuda:0` where there is one, else `cpu`."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def device_bytes() -> int:
    """Bytes allocated on the device; 0 on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _batch_ran(batch: Batch) -> BatchRan:
    return BatchRan(
        model=batch.served.model,
        profile=batch.served.profile,
        backend=batch.served.denoiser.backend,
        rows=batch.rows,
        jobs=batch.jobs,
        seconds=batch.seconds,
        is_warmup=batch.is_warmup,
        fallbacks=batch.fallbacks,
    )


def _moved(event: Event) -> Loaded | Resized | Evicted:
    if isinstance(event, Departure):
        return Evicted(model=event.model, profile=event.profile, reason=event.reason)
    served = event.served
    if isinstance(event, Growth):
        return Resized(model=served.model, profile=served.profile, weights_bytes=served.denoiser.weights_bytes)
    return Loaded(
        model=served.model,
        profile=served.profile,
        backend=served.denoiser.backend,
        seconds=event.seconds,
        weights_bytes=served.denoiser.weights_bytes,
    )
