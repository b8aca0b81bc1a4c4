"""Bars and lines as PNG files, for benches of rivals. Knows numbers with names, not how they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from bench.numbers import short
from bench.rivals import OURS


def bars(sets: Sequence[tuple[str, Mapping[str, float]]], unit: str, path: Path) -> None:
    """One panel of horizontal bars for each set, the first on top; ours in blue, rivals in grey."""
    tallest = max(len(values) for _, values in sets)
    figure, axes = plt.subplots(1, len(sets), figsize=(4.6 * len(sets), 1 + 0.3 * tallest), squeeze=False)
    for axis, (title, values) in zip(axes[0], sets, strict=True):
        names = list(values)
        drawn = axis.barh(names, list(values.values()), color=[_colour(name) for name in names])
        axis.bar_label(drawn, fmt=short, fontsize=7, padding=2)
        axis.invert_yaxis()
        axis.set(title=title, xlabel=unit)
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def lines(sets: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]], unit: str, path: Path) -> None:
    """One panel for each set, both axes by powers of two: a line of (x, y) for each name."""
    figure, axes = plt.subplots(1, len(sets), figsize=(4 * len(sets), 3.6), squeeze=False)
    for axis, (title, named) in zip(axes[0], sets, strict=True):
        for name, points in named.items():
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set(xlabel=title, ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colour(name: str) -> str:
    return "#1f77b4" if name.partition(" ")[0] in OURS else "#999999"
