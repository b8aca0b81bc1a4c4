"""The table of tuned recipes: what counts as better, and that times and errors which are not there break nothing."""

from __future__ import annotations

from typing import Any

from bench import tune_report


def row(profile: str, psnr_db: float | None, size: int, time: float | None, *, tuned: bool) -> dict[str, Any]:
    told = {"model": "m", "profile": profile, "tuned": tuned, "psnr_db": psnr_db, "bytes": size, "time": time}
    return told | {"prompt_accuracy": 0.9, "saving": None}


def dominance(*rows: dict[str, Any]) -> list[str]:
    return tune_report._dominance(rows)[2:]


def test_better_is_nearer_to_float_at_no_more_bytes_or_time() -> None:
    small = row("small", 50.0, 100, 0.9, tuned=True)
    quick = row("quick", 51.0, 300, 0.2, tuned=True)
    (line,) = dominance(small, quick, row("shipped", 49.0, 200, 0.5, tuned=False))
    _, shipped, smaller, faster, both, _ = (cell.strip() for cell in line.split("|"))
    assert shipped == "shipped"
    assert smaller == "small: +1.0 dB, 0.50 of its bytes, 1.80 of its time"
    assert faster == "quick: +2.0 dB, 1.50 of its bytes, 0.40 of its time"
    assert both == "none"


def test_what_is_farther_from_float_is_not_better() -> None:
    (line,) = dominance(row("small", 48.9, 100, 0.1, tuned=True), row("shipped", 49.0, 200, 0.5, tuned=False))
    assert line.count("none") == 3


def test_times_that_were_not_taken_and_identical_pictures() -> None:
    (line,) = dominance(row("exact", None, 100, None, tuned=True), row("shipped", 49.0, 200, 0.5, tuned=False))
    assert "exact: +inf dB, 0.50 of its bytes |" in line and line.count("none") == 2
    counts = {"prompts": 4, "measured": 1, "checked": 1, "held_out": 1, "learned_on": 2, "rounds": 3}
    facts = {**counts, "cores": {}, "machine": {"processor": "any", "date": "-"}}
    page = tune_report.markdown(facts, 2, [row("exact", None, 100, None, tuned=True)])
    assert "| **exact** | 0.00 | inf | 0.900 | - | - | - |" in page
