"""A run of some subjects keeps results of others, unless they were measured under other conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import numbers
from bench.parts import with_earlier

WHOLE = ("a", "b", "c")
FACTS: dict[str, Any] = {
    "machine": {"processor": "p", "cores": 2, "date": "day 2"},
    "packages": {"torch": "2"},
    "threads": 2,
    "rounds": 9,
    "warm": 2,
}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier run wrote of `a` and `c`."""
    monkeypatch.setattr(numbers, "RESULTS", tmp_path)
    subjects = [{"subject": name, "rows": [name], "date": "day 1"} for name in ("a", "c")]
    machine = {"processor": "p", "cores": 2, "date": "day 1"}
    (tmp_path / "cpu.json").write_text(json.dumps({**FACTS, "machine": machine, "subjects": subjects}))


def told(facts: dict[str, Any], *names: str) -> list[tuple[str, str]]:
    found = with_earlier("cpu", facts, [{"subject": name, "rows": ["new"]} for name in names], WHOLE)
    return [(one["subject"], one["date"]) for one in found]


def test_others_stay_in_the_order_of_a_whole_run() -> None:
    assert told(FACTS, "b") == [("a", "day 1"), ("b", "day 2"), ("c", "day 1")]


def test_what_is_measured_again_takes_its_place() -> None:
    assert told(FACTS, "c", "b") == [("a", "day 1"), ("b", "day 2"), ("c", "day 2")]


@pytest.mark.parametrize(
    "change",
    [{"packages": {"torch": "3"}}, {"threads": 1}, {"rounds": 3}, {"machine": {**FACTS["machine"], "processor": "q"}}],
)
def test_results_of_other_conditions_are_left_out(change: dict[str, Any]) -> None:
    assert told(FACTS | change, "b") == [("b", "day 2")]


def test_a_run_of_other_subjects_stands_alone() -> None:
    assert told(FACTS, "small", "a") == [("small", "day 2"), ("a", "day 2")]


def test_nothing_is_kept_of_a_bench_that_never_ran() -> None:
    assert [one["subject"] for one in with_earlier("memory", FACTS, [{"subject": "a"}], WHOLE)] == ["a"]
