"""The table of what sampling costs: growth is of the 95th percentile, in all and round by round."""

from __future__ import annotations

import pytest

from bench import sampling


def test_growth_is_of_the_95th_percentile() -> None:
    slow = [1.0] * 18 + [2.0, 2.0]
    waits = {("full", 0.0): [slow, slow], ("full", 0.1): [slow, [1.0] * 18 + [3.0, 3.0]]}
    row = sampling._row("full", waits)
    assert (row["p50 s, none"], row["p50 s, a tenth"]) == (1.0, 1.0)
    assert row["p95 s, a tenth"] == pytest.approx(3.0)
    assert (row["p95 grows by"], row["by round"]) == ("+50.0%", "+0.0%, +50.0%")
