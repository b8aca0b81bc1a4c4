"""How many rows a call should have: as many as pay, found by measuring, whatever else the machine does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.rows import MAX_ROWS, RETRY_CALLS, RowLimit, Search


@pytest.mark.parametrize(
    ("seconds_of", "expected"),
    [
        (lambda rows: 0.01, MAX_ROWS),  # batches are free
        (lambda rows: 0.01 * rows, 2),  # batches gain nothing
        (lambda rows: 0.01 if rows <= 8 else 0.0013 * rows, 8),  # and one where they gain up to a point
    ],
    ids=["free", "no gain", "up to 8"],
)
def test_row_limits_grow_while_it_pays(seconds_of: Callable[[int], float], expected: int) -> None:
    search = Search(seconds_of)
    search.run(60)
    learned = RowLimit()
    for _ in range(100):
        learned.observe(learned.rows, seconds_of(learned.rows))
    assert (search.complete, search.rows, learned.rows) == (True, expected, expected)


def test_a_machine_that_gets_busy_while_measuring_changes_nothing() -> None:
    calls = 0

    def seconds_of(rows: int) -> float:
        nonlocal calls
        calls += 1
        return (0.01 + 0.001 * rows) * (1 + calls / 10)

    search = Search(seconds_of)
    search.run(60)
    assert search.rows == MAX_ROWS


def test_what_did_not_pay_is_tried_again() -> None:
    limit = RowLimit()
    for _ in range(20):
        limit.observe(limit.rows, 0.01 * limit.rows)
    assert limit.rows == 2
    for _ in range(RETRY_CALLS + 50):
        limit.observe(limit.rows, 0.01)
    assert limit.rows == MAX_ROWS


def test_one_slow_run_does_not_settle_a_limit() -> None:
    limit = RowLimit()
    for run in range(100):
        limit.observe(limit.rows, 5.0 if run % 2 else 0.01)
    assert limit.rows == MAX_ROWS
