"""Pictures of evaluations as PNG files: curves over denoising steps, and a grid of samples. Knows numbers only.

Draws by the Agg canvas, which needs no display and changes no global state.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""[H, W, 3]."""

Choices = tuple[Sequence[str], Sequence[Sequence[int]]]
"""Names of rows, and for each row a number for each step."""

Series = Mapping[str, Sequence[float]]
"""Values at steps 1, 2, ... by a name for the legend."""

Steps = tuple[str, Sequence[float]]
"""What each step of a guidance plan runs, a letter each, and the deviation of the latents after it, a share."""

COLOURS = ("#1f6fb4", "#d9622b", "#2f8f5b", "#8a52a8", "#b8960c", "#c23b6b", "#4c9aa8", "#6b6b6b")
"""By place; apart in hue and in lightness. After eight they begin again, dotted."""

DPI = 120
CAPTION_WIDTH, CAPTION_LENGTH = 22, 110


def plot_trajectory(path: Path, distances: Series) -> None:
    """How far each profile's latents are from float's after each step, as shares of the latents' size."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    percent = {name: [100 * value for value in values] for name, values in distances.items()}
    _curves(axes, percent)
    _describe(axes, "Trajectory distance from float", "relative L2, %")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save(figure, path)


def plot_temporal(path: Path, worst: Series, mean: Series, mismatch: Series) -> None:
    """Left: cosines of temporal features with float's, the worst module's and the mean. Right: the share of modules
    whose feature says the wrong step.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _curves(left, worst)
    _curves(left, mean, style="--", named=False)
    _describe(left, "Temporal features: cosine with float\n(solid: worst module, dashed: mean)", "cosine")
    _curves(right, {name: [100 * value for value in values] for name, values in mismatch.items()})
    _describe(right, "Temporal features that say the wrong step", "% of modules")
    right.set_ylim(-3, 103)
    left.legend(frameon=False)
    save(figure, path)


def plot_samples(path: Path, rows: Mapping[str, Sequence[Picture]], captions: Sequence[str]) -> None:
    """A grid: a row for each profile, a column for each of its pictures under its caption."""
    columns = len(captions)
    texts = ["\n".join(textwrap.wrap(textwrap.shorten(caption, CAPTION_LENGTH), CAPTION_WIDTH)) for caption in captions]
    lines = max(text.count("\n") + 1 for text in texts)
    figure = Figure(figsize=(0.4 + 1.5 * columns, 0.2 + 0.15 * lines + 1.5 * len(rows)))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=10)
    for axes, text in zip(grid[0], texts, strict=True):
        axes.set_title(text, fontsize=7, parse_math=False)
    save(figure, path)


def plot_selection(path: Path, found: Mapping[str, Choices], names: Sequence[str]) -> None:
    """What temporal features come from, for each profile: a row for each module, a column for each step.

    `names` says what the numbers in the matrices mean.
    """
    heights = [max(2, len(rows)) for rows, _ in found.values()]
    figure = Figure(figsize=(9, 0.9 + 0.22 * sum(heights) + 0.5 * len(heights)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    colours = ListedColormap(COLOURS[: len(names)])
    for axes, (profile, (rows, choices)) in zip(panels, found.items(), strict=True):
        axes.imshow(np.array(choices), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, aspect="auto")
        axes.set_yticks(range(len(rows)), rows, fontsize=6)
        axes.set_title(profile, fontsize=10)
        axes.set_xlabel("denoising step")
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, names, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    save(figure, path)


def plot_guidance(path: Path, plans: Mapping[str, Steps], names: Mapping[str, str]) -> None:
    """What each step of guidance plans runs, a bar a step in the height of the error that the latents have after it.

    `names` says what the letters mean.
    """
    figure = Figure(figsize=(9, 0.8 + 1.9 * len(plans)), layout="constrained")
    colours = dict(zip(names, COLOURS, strict=False))
    panels = figure.subplots(len(plans), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (profile, (letters, deviations)) in zip(panels, plans.items(), strict=True):
        places = range(1, len(letters) + 1)
        percent = [100 * deviation for deviation in deviations]
        tallest = max(percent, default=0.0) or 1.0
        axes.bar(places, percent, color=[colours[letter] for letter in letters], width=0.8)
        for place, letter in zip(places, letters, strict=True):
            axes.text(place, -0.06 * tallest, letter, ha="center", va="top", fontsize=7, color=colours[letter])
        _describe(axes, profile, "error of latents, %")
        axes.set_ylim(-0.2 * tallest, 1.08 * tallest)
        axes.grid(visible=False, axis="x")
    for axes in panels[:-1]:
        axes.set_xlabel("")
    handles = [Patch(color=colours[letter], label=f"{letter}: {name}") for letter, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save(figure, path)


def _curves(axes: Axes, series: Series, *, style: str = "-", named: bool = True) -> None:
    for place, (name, values) in enumerate(series.items()):
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linewidth": 1.6}
        look["linestyle"] = style if place < len(COLOURS) else ":"
        marker = "o" if len(values) == 1 else None
        axes.plot(range(1, len(values) + 1), values, label=name if named else None, marker=marker, **look)


def _describe(axes: Axes, title: str, what: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("denoising step")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as its file's name ends, .svg or else PNG: the same numbers give the same bytes."""
    FigureCanvasAgg(figure)
    form = "svg" if path.suffix.lower() == ".svg" else "png"
    told = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "halftone"}):
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # a prompt may be in any script; boxes will do
        figure.savefig(path, format=form, dpi=DPI, metadata=told)
