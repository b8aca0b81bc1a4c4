"""The worker's metrics: names, what moves them, and that they are served."""

from __future__ import annotations

import os
import urllib.request

from jobs.job import Costs, JobResult, ResultFile, Used
from jobs.quality import Block, Summary
from workers.messages import Alive, BatchRan, Evicted, Loaded, Memory, Resized, StageTook
from workers.metrics import Metrics, resident_bytes

LABELS = {"model": "m", "profile": "w8a8", "backend": "openvino"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"halftone_{name}", labels)


def result(pictures: int) -> JobResult:
    file = ResultFile(id="x", mime="image/png", size_bytes=1, sha256="0", width=64, height=32, seed=1)
    used = Used(
        **LABELS, seed=1, num_inference_steps=25, guidance_scale=4, width=64, height=32, scheduler="DDIMScheduler"
    )
    return JobResult(files=(file,) * pictures, used=used, costs=Costs())


def test_messages_move_the_series_they_should() -> None:
    metrics = Metrics()
    for message in (
        BatchRan(**LABELS, rows=8, jobs=4, seconds=0.2, fallbacks=3),
        BatchRan(**LABELS, rows=2, jobs=1, seconds=0.1, is_warmup=True),
        StageTook(**LABELS, stage="vae_decode", seconds=0.3),
        Loaded(**LABELS, seconds=1.5, weights_bytes=1000),
        Memory(rss_bytes=10, peak_bytes=20, device_bytes=30),
        Alive(),
    ):
        metrics.heard(message, "cuda:0")
    assert value(metrics, "denoise_steps_total", **LABELS, is_warmup="false") == 8
    assert value(metrics, "denoise_steps_total", **LABELS, is_warmup="true") == 2
    assert value(metrics, "temporal_fallbacks_total", **LABELS, is_warmup="false") == 3
    assert value(metrics, "batch_size_sum", **LABELS, is_warmup="false") == 8
    assert value(metrics, "denoise_step_duration_seconds_sum", **LABELS, is_warmup="false") == 0.2
    stage = value(metrics, "stage_duration_seconds_sum", **LABELS, is_warmup="false", stage="vae_decode")
    assert stage == 0.3
    assert value(metrics, "model_weights_bytes", model="m", profile="w8a8") == 1000
    assert value(metrics, "models_loaded", model="m", profile="w8a8") == 1
    assert value(metrics, "device_memory_allocated_bytes", device="cuda:0") == 30
    metrics.heard(Resized(model="m", profile="w8a8", weights_bytes=3000), "cuda:0")
    assert value(metrics, "model_weights_bytes", model="m", profile="w8a8") == 3000
    metrics.heard(Evicted(model="m", profile="w8a8", reason="budget"), "cuda:0")
    assert value(metrics, "model_weights_bytes", model="m", profile="w8a8") == 0
    assert value(metrics, "models_loaded", model="m", profile="w8a8") == 0
    assert value(metrics, "model_evictions_total", reason="budget") == 1


def test_settled_jobs_count_as_pictures_and_a_dead_child_holds_nothing() -> None:
    metrics = Metrics()
    metrics.succeeded(result(3))
    assert value(metrics, "images_generated_total", **LABELS, is_warmup="false") == 3
    assert value(metrics, "pixels_generated_total", **LABELS, is_warmup="false") == 3 * 64 * 32
    assert value(metrics, "jobs_completed_total", model="m", profile="w8a8", status="succeeded") == 1
    metrics.heard(Loaded(**LABELS, seconds=1.5, weights_bytes=1000), "cpu")
    metrics.child_gone("crash")
    assert value(metrics, "child_restarts_total", reason="crash") == 1
    assert value(metrics, "model_weights_bytes", model="m", profile="w8a8") is None


def test_settled_videos_count_by_frames_and_their_stills_not_at_all() -> None:
    metrics, made = Metrics(), result(3)
    film, thumbnail, sheet = (
        file.model_copy(update={"variant": variant})
        for file, variant in zip(made.files, ("video", "thumbnail", "spritesheet"), strict=True)
    )
    film = film.model_copy(update={"num_frames": 17, "fps": 8, "mime": "video/mp4"})
    costs = made.costs.model_copy(update={"encode_seconds": 0.25})
    metrics.succeeded(made.model_copy(update={"files": (film, thumbnail, sheet), "costs": costs}))
    labels = LABELS | {"is_warmup": "false"}
    assert value(metrics, "videos_generated_total", **labels) == 1
    assert value(metrics, "video_frames_generated_total", **labels) == 17
    assert value(metrics, "pixels_generated_total", **labels) == 17 * 64 * 32
    assert value(metrics, "images_generated_total", **labels) is None
    assert value(metrics, "video_encode_duration_seconds_sum", mime="video/mp4") == 0.25


def test_a_comparison_of_videos_says_nothing_of_one_videos_encoding() -> None:
    metrics, made = Metrics(), result(2)
    films = tuple(file.model_copy(update={"variant": "video", "num_frames": 17, "fps": 8}) for file in made.files)
    block = Block(
        mean_psnr_db=None, identical=1, mean_ssim=1, mean_lpips=None, avg_time_s=1, speedup=1, memory_gib=1,
        weights_gib=1, activations_gib=1, weights_reduction_percent=0,
    )  # fmt: skip
    told = (Summary(profile="w8a8", verdict="passed", quality=block),)
    metrics.succeeded(made.model_copy(update={"files": films, "comparison": told}))
    assert value(metrics, "videos_generated_total", **LABELS, is_warmup="false") == 2
    assert value(metrics, "video_encode_duration_seconds_count", mime=films[0].mime) is None


def test_the_series_are_served() -> None:
    metrics = Metrics()
    endpoint = metrics.serve("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        endpoint.stop()
    assert 'halftone_process_resident_memory_bytes{process="supervisor"}' in text
    assert resident_bytes(os.getpid()) > 10_000_000
    assert resident_bytes(2**22 + 1) == 0
