"""The queue's other side for tests of the gateway: a worker without a device, whose frames are one colour."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image

from jobs.connection import connect, resolve
from jobs.files import ResultStore
from jobs.job import Costs, Failure, JobResult, ResultFile, Used, Variant
from jobs.quality import Summary
from jobs.queue import Claim, JobQueue
from jobs.records import WorkerInfo
from jobs.request import AnyRequest, CompareRequest, ImageRequest, VideoRequest
from jobs.settings import Settings
from tests.service.fake_report import make_report

MODEL, VIDEO_MODEL = "tiny", "moving"
VIDEO_FILES = {
    "mp4": ("mp4", "video/mp4"),
    "webm": ("webm", "video/webm"),
    "webp": ("webp", "image/webp"),
    "gif": ("gif", "image/gif"),
    "frames": ("zip", "application/zip"),
}


def frame(request: AnyRequest, seed: int) -> Image.Image:
    """One colour, drawn from the seed."""
    return Image.new("RGB", (request.width, request.height), (seed % 251, seed % 241, seed % 239))


def encode(image: Image.Image, output_format: str) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    image.save(file, output_format)
    return file.getvalue()


def encode_video(request: VideoRequest) -> bytes:
    """A video whose frames are the colours of consecutive seeds."""
    frames = [frame(request, request.seed + index) for index in range(request.num_frames)]
    file = io.BytesIO()
    if request.output_format == "frames":
        with zipfile.ZipFile(file, "w") as archive:
            for index, picture in enumerate(frames):
                archive.writestr(f"{index:04}.png", encode(picture, "png"))
    elif request.output_format in ("gif", "webp"):
        duration = round(1000 / request.fps)
        frames[0].save(file, request.output_format, save_all=True, append_images=frames[1:], duration=duration)
    else:
        with av.open(file, "w", format=request.output_format) as container:
            stream = container.add_stream("libx264" if request.output_format == "mp4" else "libvpx-vp9", request.fps)
            stream.width, stream.height, stream.pix_fmt = request.width, request.height, "yuv420p"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
            container.mux(stream.encode())
    return file.getvalue()


class FakeWorker:
    """Prompts choose what happens: `fail …`, `hold …` (until canceled), `slow …` (canceled or not, it succeeds)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._stop = threading.Event()
        self.taking = True
        self.started = threading.Event()
        self.made = 0

    def start(self) -> None:
        self._thread.start()
        assert self.started.wait(10)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)

    async def _main(self) -> None:
        redis = connect(resolve(self._settings))
        self._queue = JobQueue(redis, self._settings)
        self._store = ResultStore(self._settings.results_dir, self._settings.result_ttl_seconds)
        profiles = {MODEL: ("float", "w8a8"), VIDEO_MODEL: ("float",)}
        info = WorkerInfo(name="fake", state="ready", models=tuple(profiles), profiles=profiles, room=8)
        tasks: set[asyncio.Task[None]] = set()
        beat = 0.0
        while not self._stop.is_set():
            if time.monotonic() - beat > 1:
                beat = time.monotonic()
                await self._queue.heartbeat("fake", info)
                self.started.set()
            for claim in await self._queue.take("fake", 16 if self.taking else 0):
                task = asyncio.create_task(self._run(claim))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await self._queue.wait(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await redis.aclose()

    async def _run(self, claim: Claim) -> None:
        request = claim.job.request
        word = request.prompt.split()[0]
        if word == "fail":
            await self._queue.fail(claim, Failure(code="out_of_memory", message="ask for a smaller picture"))
            return
        while word in ("hold", "slow"):
            if (await self._queue.renew([claim])).canceled:
                if word == "slow":
                    break
                await self._queue.confirm_cancel(claim)
                return
            await asyncio.sleep(0.02)
        steps = request.num_inference_steps
        for index in range(0 if isinstance(request, CompareRequest) else request.previews):
            assert not isinstance(request, CompareRequest)
            await self._queue.progress(claim, index + 1, steps)
            small = base64.b64encode(encode(frame(request, index), "png")).decode()
            await self._queue.preview(claim, index, "image/png", small)
        if not await self._queue.succeed(claim, self._make(claim)):
            self._store.discard(claim.job.id, claim.token)
        self.made += 1

    def _make(self, claim: Claim) -> JobResult:
        request = claim.job.request
        used = Used(
            model=request.model,
            profile=request.profile,
            backend="torch",
            seed=request.seed,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            width=request.width,
            height=request.height,
            scheduler="DDIMScheduler",
        )
        if isinstance(request, CompareRequest):
            return self._compare(claim, request, used)
        files = tuple(
            self._video(claim, request) if isinstance(request, VideoRequest) else self._pictures(claim, request)
        )
        return JobResult(files=files, used=used, costs=Costs(denoise_seconds=0.001), notices=request.notices)

    def _compare(self, claim: Claim, request: CompareRequest, used: Used) -> JobResult:
        files: list[ResultFile] = []

        def put(data: bytes, suffix: str, mime: str, seed: int, variant: Variant) -> str:
            files.append(self._store_one(claim, len(files), data, suffix, mime, seed, variant))
            return files[-1].id

        report = make_report(request, put)
        put(report.model_dump_json().encode(), "json", "application/json", request.seed, "report")
        told = tuple(map(Summary.of, report.profiles))
        return JobResult(files=tuple(files), used=used, costs=Costs(denoise_seconds=0.001), comparison=told)

    def _pictures(self, claim: Claim, request: ImageRequest) -> Iterator[ResultFile]:
        for index, seed in enumerate(request.seeds):
            data = encode(frame(request, seed), request.output_format)
            yield self._store_one(claim, index, data, request.output_format, f"image/{request.output_format}", seed)

    def _video(self, claim: Claim, request: VideoRequest) -> Iterator[ResultFile]:
        suffix, mime = VIDEO_FILES[request.output_format]
        file = self._store_one(claim, 0, encode_video(request), suffix, mime, request.seed, "video")
        seconds = request.num_frames / request.fps
        yield file.model_copy(
            update={"num_frames": request.num_frames, "fps": request.fps, "duration_seconds": seconds}
        )
        small = encode(frame(request, request.seed), "webp")
        yield self._store_one(claim, 1, small, "webp", "image/webp", request.seed, "thumbnail")
        yield self._store_one(claim, 2, small, "webp", "image/webp", request.seed, "spritesheet")

    def _store_one(
        self, claim: Claim, index: int, data: bytes, suffix: str, mime: str, seed: int, variant: Variant = "picture"
    ) -> ResultFile:
        request = claim.job.request
        file_id, _ = self._store.write(claim.job.id, claim.token, index, data, suffix)
        return ResultFile(
            id=file_id,
            mime=mime,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            width=request.width,
            height=request.height,
            seed=seed,
            variant=variant,
        )
