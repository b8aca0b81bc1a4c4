"""From products to stored files: encoded one by one, all or none kept. Must not know what is in them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from jobs.job import ResultFile
from workers.products import Product
from workers.seams import Stage
from workers.task import Assignment, Task


class Times(Protocol):
    """Where it is told how long stages took."""

    def time(self, stage: Stage) -> AbstractContextManager[None]:
        """Adds the block's duration to a stage."""

    def add(self, stage: Stage, seconds: float) -> None:
        """Adds to a stage."""


def store(task: Task, run: Assignment, products: Iterable[Product], stages: Times) -> tuple[ResultFile, ...]:
    """Stores all products, or none. Before a file is whole and on disk, its id names nothing."""
    files = []
    try:
        for index, product in enumerate(products):
            task.check()
            files.append(store_one(task, run, index, product, stages))
    except BaseException:
        run.store.discard(task.job_id, task.token)
        raise
    return tuple(files)


def store_one(task: Task, run: Assignment, index: int, product: Product, stages: Times) -> ResultFile:
    """Encodes and stores one product, safe from a crash from here on."""
    with run.store.writing(task.job_id, task.token, index, product.extension) as new:
        with stages.time("encode"):
            product.write(new.path)
        encoded_at = time.monotonic()
        with new.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = new.path.stat().st_size
    stages.add("store", time.monotonic() - encoded_at)
    return ResultFile(
        id=new.id,
        mime=product.mime,
        size_bytes=size,
        sha256=digest,
        width=product.width,
        height=product.height,
        seed=product.seed,
        variant=product.variant,
        num_frames=product.num_frames,
        fps=product.fps,
        duration_seconds=None if not product.num_frames or not product.fps else product.num_frames / product.fps,
    )
