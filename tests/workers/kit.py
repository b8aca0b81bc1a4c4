"""What tests of the device child share: a real engine on tiny random models, and requests to run on it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.catalog import Catalog
from jobs.files import ResultStore
from jobs.job import JobResult, new_job_id
from jobs.request import AnyRequest, ImageRequest, VideoRequest
from pipelines.tiny import save_tiny
from pipelines.tiny_videos import VIDEO_FAMILIES, save_tiny_video
from workers.engine import open_engine
from workers.generate import Tools, generate
from workers.hub import Served
from workers.messages import BatchRan, FromChild
from workers.seams import Stage
from workers.settings import WorkerSettings
from workers.task import Assignment, Task

TOKEN = "0123456789abcdef"
TINY = "stable-diffusion"
DEFAULTS = {"width": 32, "height": 32, "num_inference_steps": 6, "guidance_scale": 4.0}
MOTION = {"num_frames": 9, "fps": 8}


def tiny_settings(root: Path, families: Sequence[str] = (TINY,), **changes: Any) -> WorkerSettings:
    """Settings on a data folder of their own that holds tiny models named like their families."""
    for family in families:
        if not (root / "models" / family).exists():
            moving = family in VIDEO_FAMILIES
            folder = (save_tiny_video if moving else save_tiny)(family, root / "models" / family)
            defaults = DEFAULTS | (MOTION if moving else {})
            (folder / "halftone.json").write_text(json.dumps({"defaults": defaults}))
    return WorkerSettings.model_validate({"data": root, "threads": 1} | changes)


def request(model: str = TINY, **changes: Any) -> ImageRequest:
    """A small request; keyword arguments change fields."""
    fields = {
        "model": model,
        "profile": "float",
        "prompt": "a red box",
        "seed": 1,
    }
    return ImageRequest.model_validate(DEFAULTS | fields | changes)


def video_request(model: str = "wan", **changes: Any) -> VideoRequest:
    """A small request for a video; keyword arguments change fields."""
    fields = {"model": model, "profile": "float", "prompt": "a red box", "seed": 1, "num_inference_steps": 3}
    return VideoRequest.model_validate(DEFAULTS | MOTION | fields | changes)


@dataclass
class Notes:
    """A reporter that keeps what it is told."""

    steps: list[tuple[int, int]] = field(default_factory=list)
    previews: list[tuple[int, str, str]] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    signs_of_life: int = 0
    first_step: threading.Event = field(default_factory=threading.Event)

    def stepped(self, step: int, total: int) -> None:
        self.steps.append((step, total))
        self.first_step.set()

    def previewed(self, index: int, mime: str, b64: str) -> None:
        self.previews.append((index, mime, b64))

    def working(self) -> None:
        self.signs_of_life += 1

    def stage_took(self, stage: Stage, seconds: float, served: Served) -> None:
        self.stages.append(stage)


class Kit:
    """An engine, and jobs on it without a channel."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.messages: list[FromChild] = []
        self.root = settings.results_dir
        self.store = ResultStore(settings.results_dir, settings.result_ttl_seconds)
        self.catalog = Catalog.scan(settings)
        self.tools: Tools = open_engine(self.catalog, settings, self.messages.append)

    def close(self) -> None:
        if self.tools.guard is not None:
            self.tools.guard.stop()
        self.tools.hub.stop()

    @property
    def batches(self) -> list[BatchRan]:
        return [message for message in self.messages if isinstance(message, BatchRan) and not message.is_warmup]

    def run(self, wanted: AnyRequest, task: Task | None = None, notes: Notes | None = None) -> JobResult:
        """Runs one job on this thread."""
        return generate(
            task or Task(new_job_id(), TOKEN, wanted.priority),
            Assignment(wanted, self.store),
            self.tools,
            notes or Notes(),
        )

    def run_together(self, wanted: Sequence[AnyRequest]) -> list[JobResult]:
        """Runs jobs at once, each on a thread of its own."""
        results: dict[int, JobResult] = {}

        def one(index: int) -> None:
            results[index] = self.run(wanted[index])

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(wanted))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[index] for index in range(len(wanted))]

    def store_files(self, job_id: str) -> list[Path]:
        """Whatever lies on disk for a job."""
        return [path for path in self.root.rglob(f"{job_id}-*") if path.is_file()]

    def files(self, result: JobResult) -> list[bytes]:
        return [self.store.path_of(file.id).read_bytes() for file in result.files]

    def pictures(self, result: JobResult) -> list[NDArray[np.float64]]:
        paths = [self.store.path_of(file.id) for file in result.files]
        return [np.asarray(Image.open(path), dtype=np.float64) for path in paths]


def decibels(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """PSNR of two 8-bit pictures."""
    error = float(np.mean((one - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
