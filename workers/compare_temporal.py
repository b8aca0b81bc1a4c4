"""Temporal features of a comparison's profiles against float's: measured step by step through the hub, like any call.

They depend on the steps, hardly on the prompt, so one picture's calls stand for all. Must not know reports.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.comparing import CompareRequest
from jobs.profile import FLOAT
from pipelines.denoiser import DenoiserCall, TorchDenoiser
from pipelines.featured import Featured, frontier
from pipelines.temporal import TemporalFidelity, compare_features
from workers.compare_draw import Drawer
from workers.hub import Served
from workers.residents import REFERENCE


def temporal_fidelity(
    request: CompareRequest, calls: Sequence[DenoiserCall], drawer: Drawer
) -> dict[str, TemporalFidelity]:
    """Every profile's temporal features at the timesteps of these calls, against float's; empty where the model has no
    layers that follow time alone.

    Raises:
        HalftoneError: a profile cannot be opened.
        JobCanceledSignal: the task was canceled.
    """
    task, tools = drawer.task, drawer.tools
    with tools.residents.lease(request.model, FLOAT, task) as lease:
        denoiser = lease.served.denoiser
        if not isinstance(denoiser, TorchDenoiser):
            return {}
        with tools.turns.take():
            names = frontier(denoiser.module, calls[0])
        if not names:
            return {}
        own = Served(request.model, FLOAT + REFERENCE, Featured(FLOAT, denoiser.module, names))
        found = {FLOAT: _features(own, calls, drawer)}
    for profile in request.profiles:
        with tools.residents.lease(request.model, profile + REFERENCE, task) as lease:
            featured = lease.served.denoiser
            if not isinstance(featured, Featured):
                raise TypeError(f"{profile} was opened as {type(featured).__name__}")
            served = Served(request.model, profile + REFERENCE, featured.of(names))
            found[profile] = _features(served, calls, drawer)
    compared = compare_features(found)
    return {profile: compared[profile] for profile in request.profiles}


def _features(served: Served, calls: Sequence[DenoiserCall], drawer: Drawer) -> dict[str, Tensor]:
    """Features by module, [steps, width]. They are no steps: it says meanwhile that the job goes on."""
    featured = served.denoiser
    if not isinstance(featured, Featured):
        raise TypeError(f"{served.profile} gives no features")
    rows, working, hub = [], drawer.report.working, drawer.tools.hub
    for call in calls:
        working()
        rows.append(hub.run(drawer.task, served, call, working))
    hub.leave(drawer.task)
    return featured.by_name(torch.cat(rows))
