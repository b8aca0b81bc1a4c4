"""Draws what benches found as PNG files under bench/results/. Knows rows of numbers, not how they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, object]]


def _number(value: object) -> float:
    return float(str(value))


def _lines(axes: Axes, rows: Rows, by: str, x: str, y: str) -> None:
    """One line per value of `by`."""
    for name in dict.fromkeys(str(row[by]) for row in rows):
        part = [row for row in rows if row[by] == name]
        axes.plot([_number(row[x]) for row in part], [_number(row[y]) for row in part], marker="o", label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def load(by_batch: Rows, by_load: Rows, path: Path) -> None:
    """Pictures per second by jobs at once; throughput and 95th percentile of latency by load."""
    figure, (batches, made, waits) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    _lines(batches, by_batch, "profile", "jobs at once", "pictures/s")
    _lines(made, by_load, "mode", "load", "pictures/s")
    _lines(waits, by_load, "mode", "load", "p95 s")
    for axes in (made, waits):
        axes.set_xlabel("offered load, as a share of what one at a time can do")
    figure.savefig(path, dpi=110)
    plt.close(figure)
