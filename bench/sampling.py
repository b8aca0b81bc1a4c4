"""What the quality guard costs users: their latency with a tenth of jobs replayed in float, and with none.

Regimes. *Arrivals*: requests by a Poisson process, the same ones in every round, at shares of what the service can do:
below 1 there are gaps in which the guard works. *Full*: eight clients, each sending its next request when the last is
answered. The rival is the same service without sampling (`HALFTONE_GUARD_SHARE=0`); both are started in turn, several
times, so that what else the machine does meets both. Clients share the machine. Warm-up is not counted.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from bench import machine
from bench.load import closed, poisson
from bench.numbers import keep, percentile, table
from bench.service import free_port, service

MODEL: Final = "shapes-unet"
PROFILE: Final = "w8a8"
SHARES: Final = (0.0, 0.1)
LOADS: Final = (0.5, 0.8)
FULL: Final = "full"
CLIENTS: Final = 8
WARM: Final = ((1, 3.0), (2, 3.0), (4, 3.0), (CLIENTS, 6.0))
"""Clients and seconds: code for every batch that is met later is compiled before."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run measures: times that either service is started, requests per load, seconds of a closed loop."""

    rounds: int = 3
    arrivals: int = 240
    seconds: float = 40.0


Waits = dict[tuple[str, float], list[list[float]]]
"""By regime and sampled share: the latencies, in seconds, of every round."""


def run(size: Size | None = None) -> None:
    """Measure all regimes and keep the results."""
    size, waits = size or Size(), Waits()
    capacity = replays = 0.0
    for _ in range(size.rounds):
        for share in SHARES:
            port = free_port()
            with service(guard_share=share, metrics_port=port) as gateway:
                _warm(gateway)
                capacity = capacity or len(_full(gateway, size.seconds)) / size.seconds
                for name, latencies in _regimes(gateway, size, capacity):
                    waits.setdefault((name, share), []).append(latencies)
                replays += _replayed(port) if share else 0.0
    rows = [_row(name, waits) for name in (*map(str, LOADS), FULL)]
    told = {"capacity_per_second": capacity, "replays": replays, "rounds": size.rounds}
    found: dict[str, object] = {"machine": machine.describe(), **told, "rows": rows}
    head = ["# What sampling costs users", (__doc__ or "").strip(), "Machine: " + json.dumps(found["machine"])]
    keep("sampling", found, "\n\n".join([*head, json.dumps(told), table(rows)]))


def _regimes(port: int, size: Size, capacity: float) -> Iterator[tuple[str, list[float]]]:
    for load in LOADS:
        _, waits = asyncio.run(poisson(port, load * capacity, size.arrivals, PROFILE, int(100 * load)))
        yield str(load), waits
    _full(port, 5.0)  # what the guard had begun in the gap is no part of this regime
    yield FULL, _full(port, size.seconds)


def _warm(port: int) -> None:
    for clients, seconds in WARM:
        asyncio.run(closed(port, clients, seconds, MODEL, PROFILE))


def _full(port: int, seconds: float) -> list[float]:
    """Latencies while there is always more to do."""
    return asyncio.run(closed(port, CLIENTS, seconds, MODEL, PROFILE))


def _replayed(port: int) -> float:
    """Jobs that were replayed in float so far, by the worker's own count."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "halftone_quality_comparisons_total"
        )


def _row(name: str, waits: Waits) -> dict[str, object]:
    """Percentiles over the requests of all rounds, and how p95 grew from round to round."""
    without, sampled = (waits[name, share] for share in SHARES)
    pairs = zip(without, sampled, strict=True)
    grown = [percentile(more, 0.95) / percentile(less, 0.95) - 1 for less, more in pairs]
    every = [[value for one in rounds for value in one] for rounds in (without, sampled)]
    return {
        "load": name,
        "p50 s, none": percentile(every[0], 0.5),
        "p50 s, a tenth": percentile(every[1], 0.5),
        "p95 s, none": percentile(every[0], 0.95),
        "p95 s, a tenth": percentile(every[1], 0.95),
        "p95 grows by": f"{percentile(every[1], 0.95) / percentile(every[0], 0.95) - 1:+.1%}",
        "by round": ", ".join(f"{share:+.1%}" for share in grown),
    }
