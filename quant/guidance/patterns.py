"""Which attention modules share between branches at which steps: the most multiply-adds for what is left of a budget.

Small algebra. Must not know how errors are measured, or how sharing is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from quant.guidance.choose import Matrix

MOST = 3
"""Patterns that share anything: each is a compiled graph of its own."""

Pattern = frozenset[int]
"""Numbers of modules that share."""


def choose_patterns(effects: Matrix, saved: Sequence[int], room: float) -> list[Pattern]:
    """Which modules share at each step.

    Effects are taken to be independent, so that their squares add up. They are spent where they save most; then steps
    of different patterns become alike, by what both share, until there are few.

    Args:
        effects: [steps, modules] relative error of the final latents if one module shares at one step; infinite where
            it cannot.
        saved: multiply-adds that each module saves.
        room: relative error that all together may add.
    """
    cells = [(step, module) for step, module in np.ndindex(effects.shape) if saved[module] > 0]
    cells.sort(key=lambda cell: (effects[cell] ** 2 / saved[cell[1]], cell))
    shared: list[set[int]] = [set() for _ in range(effects.shape[0])]
    spent = 0.0
    for step, module in cells:
        cost = float(effects[step, module]) ** 2
        if spent + cost <= room**2:
            spent += cost
            shared[step].add(module)
    return _few([frozenset(modules) for modules in shared], saved)


def _few(patterns: list[Pattern], saved: Sequence[int]) -> list[Pattern]:
    while len(kinds := sorted(set(patterns) - {frozenset()}, key=sorted)) > MOST:
        losses = {pair: _loss(patterns, pair, saved) for pair in combinations(kinds, 2)}
        merged = min(losses, key=losses.__getitem__)
        patterns = [merged[0] & merged[1] if one in merged else one for one in patterns]
    return patterns


def _loss(patterns: list[Pattern], pair: tuple[Pattern, Pattern], saved: Sequence[int]) -> int:
    """Multiply-adds that are saved no more if steps of two patterns share only what both do."""
    both = pair[0] & pair[1]
    return sum(patterns.count(one) * sum(saved[module] for module in one - both) for one in pair)
