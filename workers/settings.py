"""The worker's settings: bounds on time, memory and company. Read from the environment; knows no Redis and no torch."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from jobs.settings import Settings


class WorkerSettings(Settings):
    """What a worker may use, and how long anything may take. Times are seconds, sizes bytes."""

    worker_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=128)
    lanes: Annotated[tuple[Literal["image", "video"], ...], NoDecode] = Field(
        ("image", "video"), min_length=1, description="Kinds of jobs it takes, separated by commas."
    )
    max_running: int = Field(16, ge=1, le=256, description="Jobs in the device child at once.")
    max_running_videos: int = Field(4, ge=1, le=256, description="Of these, videos; more wait and let pictures pass.")
    memory_budget_bytes: int = Field(8 * 2**30, ge=0, description="Resident weights; least recently used go first.")
    cache_bytes: int = Field(20 * 2**30, ge=0, description="Compiled code on disk; least recently used goes first.")
    backend: Literal["openvino", "cuda", "reference"] | None = Field(
        None, description="What runs quantized profiles; none: our kernels on a GPU, else what their artifacts name."
    )
    gpu_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Of all that is not quantized, on a GPU; on CPUs it is float32."
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads of the device child's arithmetic; 0 = all cores.")
    guard_share: float = Field(0, ge=0, le=1, description="Share of quantized profiles' jobs replayed in float, idle.")
    guard_bytes: int = Field(256 * 2**20, ge=0, description="Pictures kept in memory until they are replayed.")

    lpips_dir: Path | None = Field(None, description="Folder with LPIPS's AlexNet weights, for comparisons.")
    clip_dir: Path | None = Field(None, description="Folder with a CLIP model, for comparisons' CLIP scores.")

    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(9100, ge=0, le=65535, description="0 = any free port.")

    sweep_seconds: float = Field(60, gt=0, description="Between two looks for result files that are to go.")
    drain_seconds: float = Field(100, ge=0, description="After SIGTERM. Keep under the container's grace period.")
    start_seconds: float = Field(300, gt=0, description="From the child's start until it is ready.")
    alive_seconds: float = Field(30, gt=0, description="A child silent for longer hangs.")
    stall_seconds: float = Field(120, gt=0, description="A job without a step for longer hangs.")
    first_step_seconds: float = Field(300, gt=0, description="Before its first step, and in comparisons, which load.")
    max_run_seconds: float = Field(1800, gt=0, description="A job in the child for longer is given up, moving or not.")
    last_words_seconds: float = Field(5, gt=0, description="From the end of a child's channel until it must be gone.")
    cancel_seconds: float = Field(15, gt=0, description="A child that does not confirm a cancel by then is killed.")

    @field_validator("lanes", mode="before")
    @classmethod
    def _split_lanes(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):  # a JSON list, as it had to be before there were commas
            return json.loads(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())
