"""Pictures of what profiles cost and keep: points with names, and the line of those that nothing beats. Knows places
and numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from halftone.plots import COLOURS, save
from jobs.pareto import Place, frontier
from jobs.profile import AXES, Axis

if TYPE_CHECKING:
    from pipelines.tune_order import Story

SCALES: Mapping[Axis, float] = {"seconds": 1.0, "bytes": 1e-6}
LABELS: Mapping[Axis, str] = {"seconds": "seconds for a picture", "bytes": "denoiser weights, MB"}
BEST, BEATEN = COLOURS[0], "#9a9a9a"
DISTANCES = (4.0, 9.0, 14.0, 20.0, 27.0)
"""Points between a name and what it names, in the order in which they are tried."""


class Dot(NamedTuple):
    """A point: where it stands, its name, and whether nothing beats it. `y` is None where it is infinite."""

    x: float
    y: float | None
    name: str
    best: bool


class Spot(NamedTuple):
    """Where a name stands beside its point, in points, and on which side it begins."""

    x: float
    y: float
    side: Literal["left", "right"]


def plot_profiles(file: Path, models: Mapping[str, Sequence[Place]], time: str = LABELS["seconds"]) -> None:
    """A row for each model: PSNR to float against time on the left, in what `time` says; against bytes on the right."""
    labels = {**LABELS, "seconds": time}
    figure = Figure(figsize=(12, 0.4 + 4.4 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False)
    for line, (name, found) in zip(grid, models.items(), strict=True):
        for axes, axis in zip(line, AXES, strict=True):
            draw(axes, dots(found, axis), name, labels[axis])
    _write(figure, file)


def plot_search(file: Path, model: str, story: Story, found: Sequence[Place], chosen: str) -> None:
    """What a search expected of its recipes as a line, and what profiles there are, the found one among them."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    title = f"{model}: {story.objective}, {story.min_psnr_db:g} dB promised"
    for axes, axis in zip(figure.subplots(1, 2), AXES, strict=True):
        points = [dot._replace(best=dot.name == chosen) for dot in dots(found, axis) if dot.y is not None]
        expected = _expected(story, axis, next((place for place in found if place.name == chosen), None))
        built = [(one.bytes * SCALES[axis], one.psnr_db) for one in story.rounds] if axis == "bytes" else []
        draw(axes, points, title, LABELS[axis], joined=False, beside=[*expected, *built])
        axes.plot(*zip(*expected, strict=True), color=BEST, linewidth=1.4, alpha=0.6, zorder=1, label="expected")
        if built:
            axes.scatter(*zip(*built, strict=True), marker="x", color=BEST, s=36, zorder=4, label="built and drawn")
        axes.axhline(story.min_psnr_db, color=BEATEN, linewidth=0.8, linestyle="--", label="promise")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    _write(figure, file)


def _expected(story: Story, axis: Axis, chosen: Place | None) -> list[tuple[float, float]]:
    """The frontier as the search expects it; seconds of denoiser calls in the measure of whole pictures."""
    if axis == "bytes":
        return [(SCALES[axis] * spot.bytes, spot.psnr_db) for spot in story.frontier]
    near = min(story.frontier, key=lambda spot: abs(spot.psnr_db - chosen.psnr_db)) if chosen else None
    measure = chosen.seconds / near.seconds if chosen and chosen.seconds and near and near.seconds else 1.0
    return [(measure * spot.seconds, spot.psnr_db) for spot in story.frontier]


def dots(found: Sequence[Place], axis: Axis) -> list[Dot]:
    """The points of one picture, those of which the cost is known."""
    best = {place.name for place in frontier(found, axis)}
    return [
        Dot(SCALES[axis] * cost, None if math.isinf(place.psnr_db) else place.psnr_db, place.name, place.name in best)
        for place in found
        if (cost := place.cost(axis)) is not None
    ]


def draw(
    axes: Axes,
    points: Sequence[Dot],
    title: str,
    what: str,
    *,
    joined: bool = True,
    beside: Sequence[tuple[float, float]] = (),
) -> None:
    """Points with names; the ones that nothing beats in colour and, if `joined`, joined by a staircase.

    `beside` has what else, at (x, y), is to have room.
    """
    known = sorted([dot.y for dot in points if dot.y is not None] + [y for _, y in beside])
    low, high = (known[0], known[-1]) if known else (0.0, 1.0)
    room = max(1.0, 0.12 * (high - low))
    top = high + 1.6 * room
    best = sorted(dot for dot in points if dot.best)
    if joined:
        heights = [top if dot.y is None else dot.y for dot in best]
        axes.step([dot.x for dot in best], heights, where="post", color=BEST, linewidth=1.4, alpha=0.55, zorder=1)
    for dot in points:
        style: dict[str, Any] = {"marker": "^" if dot.y is None else "o", "color": BEST if dot.best else BEATEN}
        axes.scatter([dot.x], [top if dot.y is None else dot.y], s=42, zorder=3, edgecolors="white", **style)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(what)
    axes.set_ylabel("PSNR to float, dB")
    axes.set_ylim(low - room, top + 0.7 * room)
    _spread(axes, [dot.x for dot in points] + [x for x, _ in beside])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for dot in points:
        infinite = dot.y is None
        axes.annotate(
            f"{dot.name} (identical)" if infinite else dot.name,
            (dot.x, top if dot.y is None else dot.y),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8,
            color="#222222" if dot.best else "#777777",
        )


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """A scale of costs: of ratios where they differ by several times, else from zero."""
    least, most = min(values, default=1.0), max(values, default=1.0)
    if least > 0 and most / least > 4:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_xlim(0.8 * least, 1.25 * most)
    else:
        axes.set_xlim(0, 1.12 * most)


def _write(figure: Figure, file: Path) -> None:
    """Moves names apart, as far as there is room, and writes the file."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        _apart(axes, canvas.get_renderer())
    save(figure, file)


def _apart(axes: Axes, renderer: Any) -> None:
    """Gives each name the first place at its point that covers neither another name nor a point."""
    frame, taken = axes.get_window_extent(renderer), list[Bbox]()
    for marks in axes.collections:
        spots = marks.get_offset_transform().transform(marks.get_offsets())
        taken += [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in spots]
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    for text in sorted(names, key=lambda text: -text.xy[1]):
        taken.append(_placed(text, taken, frame, renderer))


def _placed(text: Annotation, taken: Sequence[Bbox], frame: Bbox, renderer: Any) -> Bbox:
    """Moves a name to the place where it covers least, and tells the room that it takes there."""
    found: list[tuple[int, int, Spot, Bbox]] = []
    for spot in _spots():
        box = _at(text, spot, renderer)
        outside = box.x1 > frame.x1 + 60 or box.x0 < frame.x0 or box.y0 < frame.y0
        found.append((sum(box.overlaps(other) for other in taken) + 3 * outside, len(found), spot, box))
        if found[-1][0] == 0:
            break
    _, _, spot, box = min(found, key=lambda one: one[:2])
    return _at(text, spot, renderer)


def _at(text: Annotation, spot: Spot, renderer: Any) -> Bbox:
    text.set_position((spot.x, spot.y))
    text.set_horizontalalignment(spot.side)
    return text.get_window_extent(renderer).expanded(1.02, 1.02)


def _spots() -> Iterator[Spot]:
    """Places of a name about its point, nearer ones first."""
    for far in DISTANCES:
        for up in (far, -far - 7, 0.0 if far < 9 else far / 2):
            aside, level = (5.0, up) if up else (7.0, -3.0)
            yield Spot(aside, level, "left")
            yield Spot(-aside, level, "right")
