"""Tables of profiles against float, row by row: what is measured, kept, and told. Knows no method of quantization."""

from __future__ import annotations

import fcntl
import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import Progress

import quant
from pipelines import calibrate
from pipelines.beside import Remembered, timed
from pipelines.denoiser import Denoiser
from pipelines.features import temporal_features
from pipelines.fidelity import OnPicture
from pipelines.load import Components
from pipelines.quantized import load_profile
from zoo.build import Means, card_of, measure, model_defaults, timed_prompts
from zoo.worlds import world_of

Found = dict[str, Any]
"""What was measured of a row."""

Row = TypeVar("Row")

PAUSE = 5.0
"""Seconds between looks at rows that others are at."""

Columns = Mapping[str, tuple[str, str]]
"""Field of a row to its heading and format."""


class Kept:
    """Measured rows on disk, so that a stopped run goes on where it was."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def read(self, name: str) -> Found | None:
        """What was measured under that name; None if nothing was."""
        file = self._file(name)
        found: Found | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return found

    def write(self, name: str, found: Found) -> None:
        """Keeps it, whole or not at all."""
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(file)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process alone may work on what bears that name; no longer than it lives."""
        self.work.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
        with (self.work / f"{digest}.lock").open("w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _file(self, name: str) -> Path:
        return self.work / "rows" / f"{name}.json"


def compared(
    artifact: Path,
    components: Components,
    truth: Remembered,
    prompts: int,
    cache: Path,
    progress: calibrate.Progress,
    *,
    timing: bool = True,
    on_picture: OnPicture | None = None,
) -> tuple[Found, Found]:
    """What an artifact's pictures are against float's, and what float's are against the world.

    Seconds, where `timing` is wanted, are measured beside float's, which are not those of the answers that `truth`
    remembers; the reference backend, which is not made to be fast, has none.
    """
    card, manifest = card_of(artifact), quant.read_manifest(artifact)
    profile = load_profile(card, components, Means(cache))
    defaults = model_defaults(components.folder)
    world = world_of(defaults)
    features = temporal_features(components, [card], world.asked(1)[0].prompt, defaults)
    denoisers: dict[str, Denoiser] = {"float": truth, card.name: profile}
    found = {one.profile: one for one in measure(components, denoisers, prompts, features, progress, on_picture)}
    told: Found = {"bytes": manifest.weights_bytes, "fallback_bytes": manifest.fallback_bytes}
    told |= {"build_seconds": manifest.build_seconds, "backend": manifest.backend}
    seconds: dict[str, float] = {}
    if timing and manifest.backend != "reference":
        plain: dict[str, Denoiser] = {"float": truth.denoiser, card.name: profile}
        seconds = timed(components, plain, timed_prompts(world), defaults)
    told |= {**_numbers(found[card.name].as_json()), "seconds": seconds.get(card.name)}
    told["float_seconds"] = seconds.get("float")
    of_float = {name: value for name, value in _numbers(found["float"].as_json()).items() if name != "seconds"}
    return told, of_float


def _numbers(found: Found) -> Found:
    return {name: value for name, value in found.items() if name != "each"}


def each_row(
    kept: Kept,
    rows: Sequence[Row],
    name: Callable[[Row], str],
    group: Callable[[Row], str],
    work: Callable[[Row, calibrate.Progress], None],
) -> None:
    """Does the work of every row that is not kept yet, under one progress bar.

    Several processes may share the rows, a core each: none takes a row of a group that another is at, whose stages
    they would make twice.
    """
    with Progress() as bar:
        line, below = bar.add_task("rows", total=len(rows)), bar.add_task("comparing", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(below, description=what, completed=done, total=total)

        def done(row: Row) -> bool:
            with kept.claim(group(row)) as mine:
                if mine and kept.read(name(row)) is None:
                    bar.update(line, description=name(row))
                    work(row, tell)
                return mine

        left = list(rows)
        while left := [row for row in left if kept.read(name(row)) is None]:
            bar.update(line, completed=len(rows) - len(left))
            if not any(map(done, left)):
                time.sleep(PAUSE)


def lines(rows: Sequence[Found], methods: Sequence[str], columns: Columns) -> list[str]:
    """A Markdown table: a line for each method that has rows, mean and deviation over them."""
    told = [
        "| method | " + " | ".join(title for title, _ in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        if mine:
            cells = [cell([row.get(field) for row in mine], form) for field, (_, form) in columns.items()]
            told.append(f"| {method} | " + " | ".join(cells) + " |")
    return told


def cell(values: Sequence[float | None], form: str) -> str:
    """Mean, and deviation where there are several; `-` where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = format(statistics.fmean(known), form)
    return f"{mean} ± {statistics.stdev(known):{form}}" if len(known) > 1 else mean


def bars(sets: Sequence[tuple[str, list[Found]]], methods: Sequence[str], rivals: Sequence[str], path: Path) -> None:
    """A picture: bars of PSNR by method, one group for each set of rows; rivals in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sets), figsize=(4 * len(sets), 3.6), squeeze=False)
    for axis, (title, rows) in zip(axes[0], sets, strict=True):
        known = [row for row in rows if row["psnr_db"] is not None]
        shown = [method for method in methods if any(row["method"] == method for row in known)]
        values = [statistics.fmean(row["psnr_db"] for row in known if row["method"] == method) for method in shown]
        axis.bar(shown, values, color=["#999999" if method in rivals else "#1f77b4" for method in shown])
        axis.set_title(title, fontsize=9)
        floor = 5 * (min(values) // 5 - 1)
        axis.set_ylabel(f"PSNR to float, dB (from {floor:g})")
        axis.set_ylim(floor, max(values) + 0.1 * (max(values) - floor))
        axis.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        for place, value in enumerate(values):
            axis.text(place, value, f"{value:.1f}", ha="center", va="bottom", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
