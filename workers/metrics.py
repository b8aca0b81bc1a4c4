"""The worker's Prometheus metrics: their names, and how messages and settled jobs move them.

Knows no Redis and no job ids: labels are model, profile, backend and the like, so their number is bounded.
"""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from jobs.guard_record import LATENT_EDGES, PSNR_EDGES, Comparison, GuardRecord
from jobs.job import JobResult
from workers.messages import (
    BatchRan,
    Compared,
    Evicted,
    FromChild,
    GuardSkipped,
    Loaded,
    Memory,
    Resized,
    StageTook,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
ROWS = (1, 2, 4, 8, 16, 32, 64)
OF_PROFILE = ("model", "profile", "backend", "is_warmup")


def _flag(value: bool) -> str:
    return "true" if value else "false"


def resident_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process in bytes; 0 where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * resource.getpagesize()


class Metrics:
    """All series of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._work()
        self._jobs()
        self._models()
        self._guard()
        self._process()

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"halftone_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"halftone_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"halftone_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _work(self) -> None:
        self.images = self._counter("images_generated_total", "Pictures made and settled.", OF_PROFILE)
        self.videos = self._counter("videos_generated_total", "Videos made and settled.", OF_PROFILE)
        self.frames = self._counter("video_frames_generated_total", "Frames of those videos.", OF_PROFILE)
        self.pixels = self._counter("pixels_generated_total", "Pixels of pictures and frames.", OF_PROFILE)
        self.encode_seconds = self._histogram(
            "video_encode_duration_seconds", "Encoding one video and its stills, by its type.", SECONDS, ("mime",)
        )
        self.steps = self._counter("denoise_steps_total", "Rows through the denoiser.", OF_PROFILE)
        self.fallbacks = self._counter(
            "temporal_fallbacks_total",
            "Rows through the denoiser whose timestep no table of the artifact knew: computed by its temporal layers.",
            OF_PROFILE,
        )
        self.step_seconds = self._histogram(
            "denoise_step_duration_seconds", "One denoiser call, whatever its batch.", SECONDS, OF_PROFILE
        )
        self.batch_size = self._histogram("batch_size", "Rows in a denoiser call.", ROWS, OF_PROFILE)
        self.stage_seconds = self._histogram(
            "stage_duration_seconds", "Seconds of a job by stage.", SECONDS, (*OF_PROFILE, "stage")
        )

    def _jobs(self) -> None:
        of_job = ("model", "profile", "status")
        self.completed = self._counter("jobs_completed_total", "Jobs this worker settled.", of_job)
        self.retried = self._counter("jobs_retried_total", "Jobs given back to the queue.", ("reason",))
        self.dead_lettered = self._counter("jobs_dead_lettered_total", "Jobs given up as poisonous.", ("reason",))
        self.leases_lost = self._counter("leases_lost_total", "Jobs that somebody else took meanwhile.")
        self.fenced = self._counter("results_fenced_total", "Results thrown away: the job was not ours.")
        self.running = self._gauge("jobs_running", "Jobs in the device child.")

    def _models(self) -> None:
        of_model = ("model", "profile")
        self.load_seconds = self._histogram(
            "model_load_duration_seconds", "Seconds until a profile was resident.", SECONDS, of_model
        )
        self.loaded = self._gauge("models_loaded", "1 while the profile is resident.", of_model)
        self.weights = self._gauge("model_weights_bytes", "Denoiser weights in memory, all copies of them.", of_model)
        self.evictions = self._counter("model_evictions_total", "Profiles that left memory.", ("reason",))

    def _guard(self) -> None:
        of_profile = ("model", "profile")
        self.comparisons = self._counter(
            "quality_comparisons_total",
            "Pictures compared with float's, by the verdict then.",
            (*of_profile, "verdict"),
        )
        self.psnr = self._histogram("quality_psnr_db", "PSNR of replayed pictures to float's.", PSNR_EDGES, of_profile)
        self.latent_error = self._histogram(
            "quality_latent_relative_error", "Relative error of their final latents.", LATENT_EDGES, of_profile
        )
        self.call_error = self._histogram(
            "quality_call_relative_error", "Relative error of single denoiser answers.", LATENT_EDGES, of_profile
        )
        self.replays = self._counter("guard_replays_total", "Finished jobs replayed in float.", of_profile)
        self.replay_seconds = self._counter("guard_seconds_total", "Device seconds spent on replays.", of_profile)
        self.skipped = self._counter("guard_skipped_total", "Sampled jobs not compared.", (*of_profile, "reason"))

    def compared(self, record: GuardRecord) -> None:
        """Account for a comparison that Redis took; `record` is what is known with it."""
        self.comparisons.labels(record.model, record.profile, record.verdict.value).inc()

    def _replayed(self, one: Comparison) -> None:
        labels = (one.model, one.profile)
        self.replays.labels(*labels).inc()
        self.replay_seconds.labels(*labels).inc(one.seconds)
        self.psnr.labels(*labels).observe(one.psnr_db)
        self.latent_error.labels(*labels).observe(one.latent_error)
        for error in one.call_errors:
            self.call_error.labels(*labels).observe(error)

    def _process(self) -> None:
        self.memory = self._gauge("process_resident_memory_bytes", "Resident memory.", ("process",))
        self.memory.labels("supervisor").set_function(resident_bytes)
        self.peak = self._gauge("process_peak_memory_bytes", "Most resident memory so far.", ("process",))
        self.device_memory = self._gauge("device_memory_allocated_bytes", "Memory on the device.", ("device",))
        self.up = self._gauge("worker_up", "1 while the worker takes jobs.", ("worker", "device"))
        self.heartbeat = self._gauge("worker_last_heartbeat_timestamp_seconds", "Last heartbeat that Redis took.")
        self.restarts = self._counter("child_restarts_total", "Device children replaced.", ("reason",))

    def heard(self, message: FromChild, device: str) -> None:
        """Account for a message that carries a measurement; others change nothing."""
        if isinstance(message, BatchRan):
            labels = (message.model, message.profile, message.backend, _flag(message.is_warmup))
            self.steps.labels(*labels).inc(message.rows)
            self.fallbacks.labels(*labels).inc(message.fallbacks)
            self.step_seconds.labels(*labels).observe(message.seconds)
            self.batch_size.labels(*labels).observe(message.rows)
        elif isinstance(message, StageTook):
            labels = (message.model, message.profile, message.backend, _flag(message.is_warmup))
            self.stage_seconds.labels(*labels, message.stage).observe(message.seconds)
        elif isinstance(message, Loaded):
            self.load_seconds.labels(message.model, message.profile).observe(message.seconds)
            self.loaded.labels(message.model, message.profile).set(1)
            self.weights.labels(message.model, message.profile).set(message.weights_bytes)
        elif isinstance(message, Resized):
            self.weights.labels(message.model, message.profile).set(message.weights_bytes)
        elif isinstance(message, Evicted):
            self.evictions.labels(message.reason).inc()
            self.loaded.labels(message.model, message.profile).set(0)
            self.weights.labels(message.model, message.profile).set(0)
        elif isinstance(message, Compared):
            self._replayed(message.comparison)
        elif isinstance(message, GuardSkipped):
            self.skipped.labels(message.model, message.profile, message.reason).inc()
            self.replay_seconds.labels(message.model, message.profile).inc(message.seconds)
        elif isinstance(message, Memory):
            self.memory.labels("child").set(message.rss_bytes)
            self.peak.labels("child").set(message.peak_bytes)
            self.device_memory.labels(device).set(message.device_bytes)

    def succeeded(self, result: JobResult) -> None:
        """Account for a job whose result the queue took."""
        used = result.used
        labels = (used.model, used.profile, used.backend, _flag(False))
        for file in result.files:
            if file.variant == "picture":
                self.images.labels(*labels).inc()
                self.pixels.labels(*labels).inc(file.width * file.height)
            elif file.variant == "video":
                count = file.num_frames or 0
                self.videos.labels(*labels).inc()
                self.frames.labels(*labels).inc(count)
                self.pixels.labels(*labels).inc(count * file.width * file.height)
                if not result.comparison:  # whose costs are those of all its files
                    self.encode_seconds.labels(file.mime).observe(result.costs.encode_seconds)
        self.completed.labels(used.model, used.profile, "succeeded").inc()

    def child_gone(self, reason: str) -> None:
        """The child died: nothing is resident any more."""
        self.restarts.labels(reason).inc()
        self.loaded.clear()
        self.weights.clear()
        self.device_memory.clear()
        self.memory.labels("child").set(0)

    def serve(self, host: str, port: int) -> MetricsServer:
        """Answer GET /metrics at host:port (0 = any free port) from a thread of its own.

        Raises:
            OSError: the port is taken.
        """
        return MetricsServer(*start_http_server(port, host, registry=self.registry))


class MetricsServer:
    """The running endpoint."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
