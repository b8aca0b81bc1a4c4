"""The model `null`: jobs that cost nothing, or fail on demand, for benches and chaos tests. Imports no torch."""

from __future__ import annotations

import hashlib
import io
import os
import time
from functools import lru_cache

from PIL import Image

from jobs.errors import InvalidRequest
from jobs.job import Costs, JobResult, ResultFile, Used
from jobs.request import GenerationRequest, ImageRequest
from workers.memory import rss_bytes
from workers.task import Assignment, Task

MODEL = "null"
BACKEND = "null"
CRASH_STATUS = 3
HANG_SECONDS = 3600.0


def generate_null(task: Task, run: Assignment) -> JobResult:
    """Stores plain grey pictures, after doing what the prompt says.

    "sleep S" sleeps S seconds a step and can be canceled; "crash" ends the process; "hang" sleeps and cannot be
    canceled; anything else is ready at once.
    """
    request = run.request
    if not isinstance(request, ImageRequest):
        raise InvalidRequest(f"the model {MODEL!r} makes pictures; the job is of kind {request.kind!r}", param="model")
    started = time.monotonic()
    _obey(task, request)
    denoised = time.monotonic() - started
    task.check()
    data = _picture(request.width, request.height, request.output_format)
    files = tuple(_store(task, run, index, data) for index in range(request.n))
    costs = Costs(queue_seconds=run.queue_seconds, denoise_seconds=denoised, peak_bytes=rss_bytes())
    return JobResult(files=files, used=_used(request), costs=costs, notices=request.notices)


def _obey(task: Task, request: GenerationRequest) -> None:
    word, _, rest = request.prompt.partition(" ")
    if word == "crash":
        os._exit(CRASH_STATUS)
    if word == "hang":
        time.sleep(HANG_SECONDS)
    if word == "sleep":
        for _ in range(request.num_inference_steps):
            task.sleep(float(rest))


@lru_cache(maxsize=32)
def _picture(width: int, height: int, output_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(buffer, output_format.upper())
    return buffer.getvalue()


def _store(task: Task, run: Assignment, index: int, data: bytes) -> ResultFile:
    request = run.request
    file_id, _ = run.store.write(task.job_id, task.token, index, data, request.output_format)
    return ResultFile(
        id=file_id,
        mime=f"image/{request.output_format}",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=request.width,
        height=request.height,
        seed=request.seeds[index],
    )


def _used(request: GenerationRequest) -> Used:
    return Used(
        model=request.model,
        profile=request.profile,
        backend=BACKEND,
        seed=request.seed,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        width=request.width,
        height=request.height,
        scheduler="none",
    )
