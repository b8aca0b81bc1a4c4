"""The files of a comparison: pictures or videos, differences and the report, all or none. Knows no metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from jobs.job import ResultFile
from jobs.quality import Report
from workers.compare_draw import Ledger, Measured
from workers.products import Product, products_of
from workers.seams import Stage
from workers.storing import store_one
from workers.task import Assignment, Task

REPORT_MIME = "application/json"


class Shelf:
    """Stores files one by one under the job's token; `files` are those stored so far."""

    def __init__(self, task: Task, run: Assignment, ledger: Ledger, alive: Callable[[], None]) -> None:
        self._task = task
        self._run = run
        self._ledger = ledger
        self._alive = alive
        self.files: list[ResultFile] = []

    def put(self, made: Measured) -> str:
        """Stores what was drawn, a picture or a video, with what made it inside; its file's id.

        Raises:
            UnsupportedModel: it has another size than was asked for.
        """
        return self._store(next(products_of(made.asked, made.drawn.pictures, made.used, self._alive)))

    def put_difference(self, made: Measured, difference: Tensor) -> str:
        """Stores what sets it apart from float's, of the same shape; its file's id."""
        product = next(products_of(made.asked, difference[None], made.used, self._alive))
        return self._store(replace(product, variant="difference"))

    def put_report(self, report: Report) -> str:
        """Stores the report; its file's id."""
        settings = report.settings

        def write(path: Path) -> None:
            path.write_text(report.model_dump_json(), encoding="utf-8")

        return self._store(
            Product("json", REPORT_MIME, write, settings.width, settings.height, settings.seeds[0], "report")
        )

    def clear(self) -> None:
        """Deletes everything stored."""
        self._run.store.discard(self._task.job_id, self._task.token)

    def _store(self, product: Product) -> str:
        file = store_one(self._task, self._run, len(self.files), product, _Times(self._ledger))
        self.files.append(file)
        return file.id


class _Times:
    """Adds to the comparison's ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(stage, time.monotonic() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        self._ledger.seconds[stage] += seconds
