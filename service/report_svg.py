"""Curves over denoising steps as inline SVG, without scripts, style attributes or resources. Knows numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40
COLOURS = 8
"""Classes c0 to c7 of the page's style; after eight they begin again, dashed."""
TICKS = 4


def curves(title: str, what: str, series: Mapping[str, Sequence[float]]) -> str:
    """A figure: a line for each name over steps 1, 2, ...; what is not finite is left out. Empty without any value."""
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = _limits(min(finite), max(finite))
    steps = max(map(len, series.values()))
    lines = [_line(place, values, steps, low, high) for place, values in enumerate(series.values())]
    keys = [
        f'<li><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="{_look(place)}" d="M0 4H24"/></svg>'
        f" {escape(name)}</li>"
        for place, name in enumerate(series)
    ]
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}, over {steps} steps">'
        f"{_axes(low, high, steps, what)}{''.join(lines)}</svg>"
        f'<ul class="keys">{"".join(keys)}</ul></figure>'
    )


def _limits(low: float, high: float) -> tuple[float, float]:
    """What the axis spans: from zero where values are shares of something small, else the values with a margin."""
    if 0 <= low < 0.5 * high:
        low = 0.0
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (0.0 if low == 0 else low - margin), high + margin


def _x(step: int, steps: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * ((step - 1) / (steps - 1) if steps > 1 else 0.5)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _line(place: int, values: Sequence[float], steps: int, low: float, high: float) -> str:
    points = [(_x(step, steps), _y(value, low, high)) for step, value in enumerate(values, 1) if math.isfinite(value)]
    path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    dots = "".join(f'<circle class="{_look(place)}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in points)
    return f'<path class="{_look(place)}" d="{path}"/>{dots}'


def _look(place: int) -> str:
    return f"c{place % COLOURS}{' dashed' if place // COLOURS % 2 else ''}"


def _axes(low: float, high: float, steps: int, what: str) -> str:
    base = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>']
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        y = _y(value, low, high)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{value:.3g}</text>')
    for step in sorted({1, (1 + steps) // 2, steps}):
        parts.append(f'<text x="{_x(step, steps):.1f}" y="{base + 16}" class="middle">{step}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" class="middle">denoising step: {escape(what)}</text>')
    return "".join(parts)
