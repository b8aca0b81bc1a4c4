"""The bench of the guard: every case is judged once for each model and number of comparisons, as soon as it is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import guard
from bench.guard import Case
from bench.guard_sabotage import damage
from jobs.guard_record import Verdict

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that were judged; all as wanted, as that takes minutes otherwise, but for scales."""
    found: list[Case] = []

    def judged(model: object, case: Case, cache: Path) -> dict[str, Any]:
        found.append(case)
        missed = "scale" in case.name
        told = Verdict.HEALTHY if missed else case.wanted
        numbers = {"comparisons": case.comparisons, "psnr_db": None, "build_psnr_db": 50.0}
        words = {"case": case.name, "hit": case.hit, "reason": "a | b"}
        return {**words, **numbers, "wanted": case.wanted.value, "verdict": told.value}

    monkeypatch.setattr(guard, "judged", judged)
    monkeypatch.setattr(guard, "open_model", lambda name: name)
    return found


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the bench without builds; its last line."""

    def main(profile: str, *arguments: str) -> dict[str, Any]:
        code = guard.main(
            ["--profiles", profile, "--builds", "0", "--out", str(tmp_path), "--report", str(tmp_path), *arguments]
        )
        told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == int(told["judged_otherwise"] > 0)
        return told

    return main


def test_nothing_is_judged_twice_and_nothing_of_another_run_counts(seen: list[Case], run: Run) -> None:
    for model, comparisons, known in (
        ("shapes-unet", 2, 1),
        ("shapes-unet", 2, 1),
        ("shapes-dit", 2, 2),  # an artifact of the same name
        ("shapes-dit", 3, 3),
    ):
        told = run("trdq-w8a8", "--model", model, "--seeds", "0", "--comparisons", str(comparisons))
        assert told == {"cases": 1, "judged_otherwise": 0}
        assert len(seen) == known
    assert [(case.artifact.parent.name, case.comparisons) for case in seen] == [
        ("shapes-unet", 2),
        ("shapes-dit", 2),
        ("shapes-dit", 3),
    ]


def test_a_case_is_judged_before_the_next_is_made(seen: list[Case], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def damaged(source: Path, target: Path, kind: str, seed: int) -> str:
        assert [case.name.rpartition("/")[2] for case in seen] == made
        made.append(f"{kind}-{seed}")
        return damage(source, target, kind, seed)

    monkeypatch.setattr(guard, "damage", damaged)
    assert run("tfmq-w8a8") == {"cases": 6, "judged_otherwise": 1}
    assert len(made) == 5 and all(case.artifact.is_dir() for case in seen)


def test_the_page_marks_what_was_judged_otherwise(seen: list[Case], run: Run, tmp_path: Path) -> None:
    run("tfmq-w8a8", "--model", "shapes-unet", "--comparisons", "2")
    text = (tmp_path / "guard-shapes-unet.md").read_text(encoding="utf-8")
    assert "`python -m bench guard --model shapes-unet --profiles tfmq-w8a8 --seeds 1 --builds 0 " in text
    lines = [line for line in text.splitlines() if line.startswith("| tfmq-w8a8 |")]
    assert len(lines) == len(seen) == 6 and "5 of 6 cases" in text
    assert [line for line in lines if "**healthy**" in line] == [line for line in lines if "scale-x4" in line]
    assert all("| 2 | - | 50.0 | a / b |" in line for line in lines if "shipped" in line)
