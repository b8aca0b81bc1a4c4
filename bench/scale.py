"""`python -m bench scale`: how cost grows with pixels, batch, steps, layers and frames, by ours and by rivals.

One thing grows at a time. Pixels, batch, layers and frames: seconds of one call, in interleaved rounds. Steps: seconds
of a whole picture; ours has tables for one schedule, so other numbers of steps also show what unknown timesteps cost.
An exponent of 1 is in proportion: the slope between the last two sizes, both axes logarithmic.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from bench import charts, numbers
from bench.cpu_cells import ANCHOR, Size, built, cell_name, packages, resolved
from bench.cpu_heats import asked
from bench.machine import describe
from bench.numbers import keep
from bench.rivals import rival
from bench.rivals.process import Process, RivalFailed
from bench.subjects import STEPS, subject
from bench.table import Found, Kept
from pipelines.load import quiet

Points = dict[str, list[tuple[float, float]]]
"""Rival to (size, seconds)."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What grows.

    Attributes:
        name: of it.
        points: size to the subject that has it.
        rows: size to rows of the call; 2 where it is not said.
        steps: size to steps of a picture that is drawn whole.
    """

    name: str
    points: Mapping[int, str]
    rows: Mapping[int, int] = field(default_factory=dict)
    steps: Mapping[int, int] = field(default_factory=dict)


AXES: Final[Mapping[str, Axis]] = {
    "pixels": Axis("pixels along a side", {128: "sd15@16", 256: "sd15@32", 384: "sd15@48", 512: "sd15@64"}),
    "batch": Axis("rows of a call", dict.fromkeys((1, 2, 4, 8, 16), "sd15@32"), rows={n: n for n in (1, 2, 4, 8, 16)}),
    "steps": Axis("steps", dict.fromkeys((6, 12, 25, 50), "sd15@32"), steps={n: n for n in (6, 12, 25, 50)}),
    "layers": Axis("layers", {2: "pixart-2@32", 4: "pixart-4@32", 8: "pixart-8@32", 28: "pixart@32"}),
    "frames": Axis("frames", {n: f"video-{n}x16" for n in (1, 3, 5, 9)}),
    "small-pixels": Axis("pixels along a side", {64: "small-unet@8", 128: "small-unet@16"}),
    "small-batch": Axis("rows of a call", dict.fromkeys((1, 2), "small-unet@8"), rows={n: n for n in (1, 2)}),
    "small-steps": Axis("steps", dict.fromkeys((6, STEPS), "small-unet@8"), steps={n: n for n in (6, STEPS)}),
    "small-layers": Axis("layers", {1: "small-pixart-1@8", 4: "small-pixart-4@8"}),
    "small-frames": Axis("frames", {n: f"small-video-{n}x8" for n in (1, 3)}),
}
"""Name to what grows; those that begin with small are for `--quick`."""

FULL: Final = Size(
    subjects=tuple(name for name in AXES if not name.startswith("small-")),
    rivals=("torch-fp32", "openvino-bf16", "openvino-nncf-int8", ANCHOR),
    rounds=5,
)
QUICK: Final = Size(
    subjects=tuple(name for name in AXES if name.startswith("small-")),
    rivals=("torch-fp32", ANCHOR),
    rounds=2,
    warm=1,
)

HEAD = """# What grows with what

Made by `python -m bench scale` on {processor}, {date}, {threads} threads; medians of {rounds} interleaved rounds after
{warm} calls that are not counted. Versions: {versions}. Public widths, random weights.
"""


def run(size: Size) -> None:
    """Measures what is not measured yet, and writes the tables.

    Raises:
        KeyError: there is no such axis; the message lists those that there are.
    """
    quiet()
    size = resolved(size)
    if unknown := sorted(set(size.subjects) - set(AXES)):
        raise KeyError(f"nothing grows by the name {', '.join(unknown)}; there are {', '.join(AXES)}")
    axes = [AXES[name] for name in size.subjects]
    kept = Kept(size.root)
    found = [measured(axis, size, kept) for axis in axes]
    facts: Found = {"machine": describe(), "packages": packages(), "threads": size.cores}
    facts |= {"rounds": size.rounds, "warm": size.warm}
    keep("scale", {**facts, "axes": found}, markdown(facts, found))
    sets = [(one["axis"], one["points"]) for one in found if one["points"]]
    if sets:
        charts.lines(sets, "seconds", numbers.RESULTS / "scale.png")


def measured(axis: Axis, size: Size, kept: Kept) -> Found:
    """An axis: seconds of each rival at each size, and who did not run."""
    points: Points = {}
    failed: dict[str, str] = {}
    fallbacks: dict[int, int] = {}
    for at, name in axis.points.items():
        deciding: dict[str, Any] = {"rounds": size.rounds, "warm": size.warm, "threads": size.cores}
        deciding |= {"rows": axis.rows.get(at, 2), "steps": axis.steps.get(at, 0)}
        cell = cell_name("scale", name, size.rivals, deciding, packages())
        done = kept.read(cell)
        if done is None:
            done = _point(name, axis.rows.get(at, 2), axis.steps.get(at, 0), size, kept)
            kept.write(cell, done)
        failed |= done["failed"]
        for one, seconds in done["seconds"].items():
            points.setdefault(one, []).append((at, statistics.median(seconds)))
        if ANCHOR in done["fallbacks"]:
            fallbacks[at] = done["fallbacks"][ANCHOR]
    return {"axis": axis.name, "points": points, "failed": failed, "fallbacks": fallbacks if axis.steps else {}}


def _point(name: str, rows: int, steps: int, size: Size, kept: Kept) -> Found:
    """Seconds by rival of calls of so many rows, or of pictures of so many steps where that is not 0."""
    about = subject(name, size.root)
    about.prepare()
    gc.collect()
    told: dict[str, Found] = {one: {} for one in size.rivals}
    order: Found = {"order": "draw", "steps": steps} if steps else {"order": "run", "call": 0, "rows": rows}
    with ExitStack() as stack:
        alive: dict[str, Process] = {}
        for one in size.rivals:
            why = rival(one).why_not()
            if why is not None:
                told[one]["failed"] = why
                continue
            try:
                built(one, about, size, kept)
                alive[one] = stack.enter_context(Process(one, name, size.root, size.cores))
            except RivalFailed as error:
                told[one]["failed"] = str(error)
        for one, process in alive.items():
            asked(process, told[one], "open")
        for number in range(-1 if steps else -size.warm, size.rounds):
            for one, process in alive.items():
                took = asked(process, told[one], **order)
                if took and number >= 0:
                    told[one].setdefault("seconds", []).append(took["seconds"])
        for one, process in alive.items():
            told[one] |= {"fallbacks": asked(process, told[one], "weigh").get("fallbacks", 0)}
    fields = ("seconds", "failed", "fallbacks")
    return {field: {one: row[field] for one, row in told.items() if field in row} for field in fields}


def markdown(facts: Found, found: Sequence[Found]) -> str:
    """The whole page."""
    machine, versions = facts["machine"], ", ".join(f"{name} {one}" for name, one in facts["packages"].items())
    told = {"processor": machine["processor"], "date": machine["date"], "versions": versions}
    parts = [HEAD.format(**told, **{key: facts[key] for key in ("threads", "rounds", "warm")})]
    for one in found:
        parts += ["", f"## {one['axis'].capitalize()}", ""]
        sizes = sorted({at for points in one["points"].values() for at, _ in points})
        parts += ["| seconds | " + " | ".join(map(str, sizes)) + " | exponent |", "|---" * (len(sizes) + 2) + "|"]
        for name, points in one["points"].items():
            known = dict(points)
            cells = [f"{known[at]:.4g}" if at in known else "-" for at in sizes]
            parts.append(f"| {name} | {' | '.join(cells)} | {_slope(points)} |")
        parts += ["", *(f"- {name} is not here, or not at all sizes: {why}" for name, why in one["failed"].items())]
        if one["fallbacks"]:
            told_rows = ", ".join(f"{rows} at {at}" for at, rows in one["fallbacks"].items())
            parts.append(f"- Rows of {ANCHOR} at timesteps that no table knows, in all runs together: {told_rows}.")
    return "\n".join([*parts, ""])


def _slope(points: Sequence[Sequence[float]]) -> str:
    if len(points) < 2:
        return "-"
    (first, before), (last, after) = points[-2:]
    return f"{math.log(after / before) / math.log(last / first):.2f}"
