"""Modules that share: the most multiply-adds for the room there is, in few patterns."""

from __future__ import annotations

import numpy as np

from quant.guidance.patterns import MOST, choose_patterns


def test_room_is_spent_where_it_saves_most_and_never_overdrawn() -> None:
    effects = np.array([[0.01, 0.03, np.inf], [0.02, 0.01, 0.001]])
    assert choose_patterns(effects, [10, 100, 50], 0.0) == [frozenset(), frozenset()]
    assert choose_patterns(effects, [10, 100, 50], 0.01004) == [frozenset(), frozenset({2})]
    assert choose_patterns(effects, [10, 100, 50], 0.0101) == [frozenset(), frozenset({1, 2})]
    assert choose_patterns(effects, [10, 100, 50], 1.0) == [frozenset({0, 1}), frozenset({0, 1, 2})]
    assert choose_patterns(effects, [0, 0, 0], 1.0) == [frozenset(), frozenset()], "it would save nothing"


def test_patterns_become_few_by_what_they_have_in_common() -> None:
    rng = np.random.default_rng(0)
    effects = rng.uniform(0.001, 0.02, (12, 6))
    found = choose_patterns(effects, [5, 4, 3, 9, 1, 7], 0.04)
    kinds = set(found) - {frozenset()}
    assert 0 < len(kinds) <= MOST
    spent = sum(effects[step, module] ** 2 for step, modules in enumerate(found) for module in modules)
    assert spent <= 0.04**2
