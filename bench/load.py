"""The service under load: what the queue costs, pictures per second by batch, and batching against one job at a time.

Regimes. *Overhead*: the `null` model, 8 clients, each sending its next request when the last is answered; queue,
supervisor, child, file and HTTP are real, only the picture is not painted. *Batches*: as many clients as the batch has
jobs, the profiles in turn. *Arrivals*: requests arrive by a Poisson process whatever the service does; the rival is the
same service with one job at a time (`HALFTONE_MAX_RUNNING=1`). Clients share the machine. Warm-up is not counted.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

from bench import machine, pictures
from bench.http import Connection
from bench.numbers import RESULTS, keep, percentile, table
from bench.service import service

PROMPT = "a large red circle left of a small blue square on a beige background"
BATCHES = (1, 2, 4, 8)
LOADS = (0.5, 0.9, 1.5, 3.0)


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run measures: seconds per closed loop, requests per arrival rate, rounds of the batch table."""

    seconds: float = 10.0
    arrivals: int = 60
    rounds: int = 3


def _body(model: str, profile: str, seed: int) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "profile": profile, "seed": seed, "response_format": "url"}


async def closed(port: int, clients: int, seconds: float, model: str, profile: str) -> list[float]:
    """Latencies of all requests that `clients` sent one after the other within the time."""
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        async with Connection(port) as connection:
            while (began := time.monotonic()) < end:
                body = _body(model, profile, number * 100_000 + len(latencies))
                await connection.ask("POST", "/v1/images/generations", body)
                latencies.append(time.monotonic() - began)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return latencies


async def _settling(port: int, count: int) -> list[float]:
    """Seconds from acceptance to settlement of the newest jobs, by Redis's clock."""
    found: list[float] = []
    after = ""
    async with Connection(port) as connection:
        while len(found) < count:
            page = await connection.ask("GET", f"/v1/jobs?limit=100{after}")
            found += [job["finished_at"] - job["created_at"] for job in page["data"] if job["finished_at"]]
            if not page["has_more"]:
                break
            after = f"&after={page['data'][-1]['id']}"
    return found[:count]


def overhead(size: Size) -> dict[str, float]:
    """Milliseconds from acceptance to settlement, and jobs per second, with nothing painted."""
    with service(null_model=1) as port:
        asyncio.run(closed(port, 8, 2.0, "null", "float"))
        latencies = asyncio.run(closed(port, 8, size.seconds, "null", "float"))
        settled = asyncio.run(_settling(port, min(len(latencies), 2000)))
        crowd = asyncio.run(closed(port, 32, size.seconds, "null", "float"))
    return {
        "clients": 8.0,
        "settle_p50_ms": 1000 * percentile(settled, 0.5),
        "settle_p99_ms": 1000 * percentile(settled, 0.99),
        "http_p50_ms": 1000 * percentile(latencies, 0.5),
        "http_p99_ms": 1000 * percentile(latencies, 0.99),
        "jobs_per_second": len(latencies) / size.seconds,
        "jobs_per_second_32_clients": len(crowd) / size.seconds,
    }


def batches(size: Size) -> list[dict[str, object]]:
    """Pictures per second by the number of jobs at once, both profiles in turn within one run."""
    made: dict[tuple[str, int], list[float]] = {}
    with service() as port:
        for profile in ("float", "w8a8"):
            asyncio.run(closed(port, 8, 5.0, "shapes-unet", profile))
        for _ in range(size.rounds):
            for jobs in BATCHES:
                for profile in ("float", "w8a8"):
                    began = time.monotonic()
                    done = asyncio.run(closed(port, jobs, size.seconds / 2, "shapes-unet", profile))
                    made.setdefault((profile, jobs), []).append(len(done) / (time.monotonic() - began))
    rates = {key: percentile(values, 0.5) for key, values in made.items()}
    return [
        {"profile": profile, "jobs at once": jobs, "pictures/s": rate, "against 1": rate / rates[profile, 1]}
        for (profile, jobs), rate in sorted(rates.items())
    ]


async def poisson(port: int, rate: float, count: int, profile: str, seed: int) -> tuple[float, list[float]]:
    """Pictures per second and latencies of `count` requests that arrive at `rate` per second."""
    rng = random.Random(seed)  # noqa: S311  (arrival times, not secrets)
    latencies: list[float] = []

    async def request(number: int) -> None:
        began = time.monotonic()
        async with Connection(port) as connection:
            await connection.ask("POST", "/v1/images/generations", _body("shapes-unet", profile, number))
        latencies.append(time.monotonic() - began)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(request(number))
            await asyncio.sleep(rng.expovariate(rate))
    return count / (time.monotonic() - began), latencies


def arrivals(size: Size, profile: str = "w8a8") -> list[dict[str, object]]:
    """Batching against one job at a time under the same arrivals, at shares of what one at a time can do."""
    rows: list[dict[str, object]] = []
    capacity = 0.0
    for name, settings in (("one at a time", {"max_running": 1}), ("batching", {})):
        with service(**settings) as port:
            asyncio.run(closed(port, 8, 5.0, "shapes-unet", profile))
            if not capacity:
                capacity = len(asyncio.run(closed(port, 2, size.seconds, "shapes-unet", profile))) / size.seconds
            for load in LOADS:
                made, waits = asyncio.run(poisson(port, load * capacity, size.arrivals, profile, int(100 * load)))
                rows.append(
                    {
                        "load": load,
                        "mode": name,
                        "offered/s": load * capacity,
                        "pictures/s": made,
                        "p50 s": percentile(waits, 0.5),
                        "p95 s": percentile(waits, 0.95),
                    }
                )
    return sorted(rows, key=lambda row: (float(str(row["load"])), str(row["mode"])))


def run(size: Size | None = None) -> None:
    """Measure all three regimes and keep the results."""
    size = size or Size()
    cost = overhead(size)
    found: dict[str, object] = {"machine": machine.describe(), "overhead": cost}
    by_batch, by_load = batches(size), arrivals(size)
    found |= {"batches": by_batch, "arrivals": by_load}
    text = "\n\n".join(
        [
            "# The service under load",
            (__doc__ or "").strip(),
            "Machine: " + json.dumps(found["machine"]),
            "## Overhead with the null model",
            table([cost]),
            "## Pictures per second by jobs at once",
            table(by_batch),
            "## Poisson arrivals, w8a8",
            table(by_load),
        ]
    )
    keep("load", found, text)
    pictures.load(by_batch, by_load, RESULTS / "load.png")
