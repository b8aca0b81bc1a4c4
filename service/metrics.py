"""The gateway's metrics: counters of requests and jobs, and the queue as Redis sees it when somebody scrapes.

One process, one registry of its own. Labels are routes, models, profiles and states, never ids.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from jobs.errors import (
    DiskFull,
    HalftoneError,
    InvalidRequest,
    NoWorker,
    ProfileFailed,
    PromiseUnmet,
    QueueFull,
    Unavailable,
)
from jobs.records import QueueStats, WorkerInfo
from jobs.request import AnyRequest
from service.guard_metrics import GuardCollector

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_REASONS: tuple[tuple[type[HalftoneError], str], ...] = (
    (QueueFull, "queue_full"),
    (NoWorker, "no_worker"),
    (DiskFull, "disk_full"),
    (Unavailable, "unavailable"),
    (PromiseUnmet, "promise_unmet"),
    (ProfileFailed, "profile_failed"),
    (InvalidRequest, "invalid"),
)


class Metrics:
    """Everything that /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue = QueueCollector()
        self.registry.register(self.queue)
        self.guard = GuardCollector()
        self.registry.register(self.guard)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry, platform=platform)
        self.requests = Counter(
            "halftone_http_requests", "Answered requests.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "halftone_http_request_duration_seconds",
            "From the request's head to its answer's last byte.",
            ["route", "method"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.open_requests = Gauge("halftone_http_open_requests", "Requests being answered.", registry=self.registry)
        self.event_streams = Gauge("halftone_sse_clients", "Open event streams.", registry=self.registry)
        self.submitted = Counter(
            "halftone_jobs_submitted",
            "Jobs accepted, repeats not counted.",
            ["kind", "model", "profile", "priority"],
            registry=self.registry,
        )
        self.repeated = Counter(
            "halftone_jobs_repeated", "Submits answered with the job of an earlier one.", registry=self.registry
        )
        self.chosen = Counter(
            "halftone_quality_choices",
            "Requests served by another profile than named: chosen by promise, or for one that failed the guard.",
            ["model", "profile", "reason"],
            registry=self.registry,
        )
        self.rejected = Counter("halftone_jobs_rejected", "Submits refused.", ["reason"], registry=self.registry)
        self.waited = Histogram(
            "halftone_job_wait_seconds",
            "What a waiting client saw, from accepted to final.",
            ["status"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def accepted(self, request: AnyRequest) -> None:
        """Count a job that was put into the queue."""
        self.submitted.labels(request.kind, request.model, request.profile, request.priority.value).inc()
        for notice in request.notices:
            if notice.code in ("profile_chosen", "profile_replaced"):
                self.chosen.labels(request.model, request.profile, notice.code.removeprefix("profile_")).inc()

    def refused(self, fault: HalftoneError) -> None:
        """Count a submit that was not accepted, by reason."""
        reason = next((name for cls, name in _REASONS if isinstance(fault, cls)), "other")
        self.rejected.labels(reason).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class QueueCollector(Collector):
    """Shows the queue and the workers as last looked at; the /metrics route looks just before it answers."""

    def __init__(self) -> None:
        self._seen: tuple[QueueStats, Sequence[WorkerInfo]] | None = None

    def show(self, stats: QueueStats, workers: Sequence[WorkerInfo]) -> None:
        """Remember what the next scrape shows."""
        self._seen = (stats, workers)

    def hide(self) -> None:
        """Redis is away: show no numbers rather than old ones."""
        self._seen = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the registry."""
        yield _gauge("halftone_redis_up", "Whether Redis answered this scrape.", float(self._seen is not None))
        if self._seen is None:
            return
        stats, workers = self._seen
        depth = GaugeMetricFamily("halftone_queue_depth", "Jobs waiting.", labels=["lane", "priority"])
        age = GaugeMetricFamily("halftone_queue_oldest_age_seconds", "Longest wait.", labels=["lane", "priority"])
        for lane, waiting in stats.lanes.items():
            for priority, value in waiting.depth.items():
                depth.add_metric([lane, priority.value], value)
            for priority, seconds in waiting.oldest_age.items():
                age.add_metric([lane, priority.value], seconds)
        yield depth
        yield age
        yield _gauge("halftone_queue_pending_entries", "Jobs in workers' hands.", stats.pending)
        yield _gauge("halftone_dead_letters", "Jobs that were given up on.", stats.dead)
        yield from _worker_gauges(workers)


def _worker_gauges(workers: Sequence[WorkerInfo]) -> Iterator[GaugeMetricFamily]:
    live = GaugeMetricFamily("halftone_workers", "Workers with a live heartbeat.", labels=["state"])
    for state in ("starting", "ready", "draining"):
        live.add_metric([state], sum(worker.state == state for worker in workers))
    yield live
    yield _gauge("halftone_workers_running_jobs", "Jobs running by the heartbeats.", sum(w.running for w in workers))
    yield _gauge("halftone_workers_room_jobs", "Jobs that workers could take now.", sum(w.room for w in workers))


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family
