"""What tests of the gateway share: a real Redis, the gateway on a real port, and a stand-in for the worker's side."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from jobs.connection import connect, resolve
from jobs.manifest import Manifest
from jobs.profile import Fidelity
from jobs.queue import JobQueue
from jobs.redis_server import RedisServer
from service.server import GatewayServer, make_server
from service.settings import Settings
from tests.service.fake_worker import MODEL, VIDEO_MODEL, FakeWorker

T = TypeVar("T")
WORDS = ("a", "red", "blue", "circle", "square", "of", "left")


@dataclass
class Served:
    """A gateway at work. `client` speaks to it; `ask` looks into its queue from the side."""

    settings: Settings
    url: str
    server: GatewayServer
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    headers: dict[str, str] = field(default_factory=dict)

    def ask(self, look: Callable[[JobQueue], Awaitable[T]]) -> T:
        """Run something on a queue object of its own."""

        async def run() -> T:
            redis = connect(resolve(self.settings))
            try:
                return await look(JobQueue(redis, self.settings))
            finally:
                await redis.aclose()

        return asyncio.run(run())

    def in_loop(self, work: Callable[[], T]) -> T:
        """Run a plain function in the gateway's own thread."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def until(self, job_id: str, *states: str, seconds: float = 10) -> dict[str, Any]:
        """Poll a job over HTTP until it is in one of the states."""
        deadline = time.monotonic() + seconds
        while (job := self.client.get(f"/v1/jobs/{job_id}").json())["status"] not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.01)
        return dict(job)


def make_model(folder: Path) -> Path:
    """A model's folder, as far as a gateway looks into one."""
    (folder / "scheduler").mkdir(parents=True)
    (folder / "unet").mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(16)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    card = {
        "id": MODEL,
        "kind": "image",
        "description": "a model for tests",
        "defaults": {"width": 16, "height": 16, "num_inference_steps": 4, "guidance_scale": 3.0},
        "limits": {"min_side": 8, "max_side": 64, "multiple_of": 8, "max_pixels": 2048, "max_steps": 50},
        "trained_sizes": [[16, 16]],
        "vocabulary": list(WORDS),
    }
    (folder / "halftone.json").write_text(json.dumps(card))
    return folder


def make_video_model(folder: Path) -> Path:
    """The same for a model of videos: 1, 5, 9 … 21 frames."""
    make_model(folder)
    (folder / "unet").rename(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    card = {
        "id": VIDEO_MODEL,
        "kind": "video",
        "description": "a model of videos for tests",
        "defaults": {
            "width": 16, "height": 16, "num_inference_steps": 4, "guidance_scale": 3.0, "num_frames": 5, "fps": 8,
        },
        "limits": {
            "min_side": 8, "max_side": 64, "multiple_of": 8, "max_pixels": 2048, "max_steps": 50,
            "max_frames": 21, "frames_multiple_of": 4,
        },
        "vocabulary": [*WORDS, "moves"],
    }  # fmt: skip
    (folder / "halftone.json").write_text(json.dumps(card))
    return folder


def make_artifact(folder: Path) -> None:
    """A quantized profile of that model, as far as a gateway reads one."""
    manifest = Manifest(
        model=MODEL,
        profile="w8a8",
        backend="openvino",
        recipe={"name": "w8a8"},
        weight_bits=8,
        activation_bits=8,
        weights_bytes=4,
        float_weights_bytes=16,
        model_sha256="0" * 64,
        files={},
        layers=[],
        calibration={},
        fidelity=Fidelity(prompts=2, psnr_db=40.0, ssim=0.99),
        halftone_version="0.1.0",
    )
    (folder / MODEL / "w8a8").mkdir(parents=True)
    (folder / MODEL / "w8a8" / "manifest.json").write_text(manifest.model_dump_json())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / MODEL)


@pytest.fixture(scope="session")
def video_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video_model(tmp_path_factory.mktemp("models") / VIDEO_MODEL)


@pytest.fixture(scope="session")
def gateway_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for all tests of this room; each gateway takes a namespace of its own."""
    settings = Settings(data=tmp_path_factory.mktemp("redis"))
    server = RedisServer(settings)
    server.start_now()
    yield resolve(settings)
    server.stop_now()


@contextmanager
def serving(settings: Settings, headers: dict[str, str] | None = None) -> Iterator[Served]:
    """A gateway on a free port, in a thread of its own."""
    ready = threading.Event()
    held: list[tuple[GatewayServer, asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        server = make_server(settings)
        held.append((server, asyncio.get_running_loop()))
        task = asyncio.create_task(server.serve())
        await server.listening.wait()
        ready.set()
        await task
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(15)
    server, loop = held[0]
    url = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        yield Served(settings, url, server, loop, client, headers or {})
    if thread.is_alive():
        loop.call_soon_threadsafe(server.leave)
        thread.join(15)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def make_settings(
    gateway_redis: str, model_folder: Path, video_model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Settings]:
    """Settings of a gateway with its own namespace and data folder; keyword arguments change the rest."""

    def make(**changes: Any) -> Settings:
        own: dict[str, Any] = {
            "data": tmp_path_factory.mktemp("data"),
            "redis_url": gateway_redis,
            "namespace": f"t{secrets.token_hex(4)}",
            "models": (model_folder, video_model_folder),
            "default_model": MODEL,
            "default_video_model": VIDEO_MODEL,
            "port": 0,
            "disk_floor_bytes": 0,
            "drain_notice_seconds": 0,
            "drain_seconds": 5,
        }
        settings = Settings(**(own | changes))
        make_artifact(settings.artifacts_dir)
        return settings

    return make


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`serving`, for tests that need a gateway with settings of their own."""
    return serving


@pytest.fixture(scope="session")
def work() -> type[FakeWorker]:
    """The stand-in worker's class."""
    return FakeWorker


@pytest.fixture(scope="session")
def served(make_settings: Callable[..., Settings]) -> Iterator[Served]:
    """A gateway with a worker behind it, shared by all tests that leave no job open."""
    settings = make_settings()
    worker = FakeWorker(settings)
    worker.start()
    with serving(settings) as gateway:
        yield gateway
    worker.stop()


@pytest.fixture(scope="session")
def idle(make_settings: Callable[..., Settings]) -> Iterator[Served]:
    """A gateway whose worker only beats: what is accepted stays in the queue and can be counted."""
    settings = make_settings(max_queued_per_key=1000)
    worker = FakeWorker(settings)
    worker.taking = False
    worker.start()
    with serving(settings) as gateway:
        yield gateway
    worker.stop()
