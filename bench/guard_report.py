"""Turns judged cases into docs/results/guard-MODEL.{json,md}. Must not judge anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

HEAD: Final = """# What the quality guard finds, and what it leaves alone

Made by `python -m bench guard {options}` (resumes case by case); numbers too in
`guard-{model}.json`. Real pictures of `{model}`: each comparison draws an unseen prompt that no build was measured on,
in float and by the artifact, and is judged by the records that serve, one after the other. Damaged artifacts are to be
failed within 20 comparisons; healthy ones, among them builds calibrated on prompts of their own, are never to be.
{processor}, {date}. {right} of {cases} cases were judged as they should be.
"""

TITLES: Final = ("artifact", "damage", "verdict", "after comparisons", "PSNR dB", "at build", "reason")


def write(folder: Path, facts: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    """Writes JSON and Markdown.

    Args:
        folder: where to.
        facts: options, model, processor, date.
        cases: as `bench.guard.judged` tells them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"guard-{facts['model']}"
    document = {"facts": facts, "cases": list(cases)}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown(facts, cases), encoding="utf-8")


def markdown(facts: dict[str, Any], cases: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    right = sum(one["verdict"] == one["wanted"] for one in cases)
    lines = ["| " + " | ".join(TITLES) + " |", "|---" * len(TITLES) + "|", *map(_line, cases)]
    return "\n".join([HEAD.format(**facts, right=right, cases=len(cases)), *lines, ""])


def _line(one: dict[str, Any]) -> str:
    artifact, _, damage = one["case"].partition("/")
    cells = [
        artifact,
        f"{damage}: {one['hit']}" if one["hit"] else damage,
        one["verdict"] if one["verdict"] == one["wanted"] else f"**{one['verdict']}**",
        str(one["comparisons"]),
        *("-" if value is None else f"{value:.1f}" for value in (one["psnr_db"], one["build_psnr_db"])),
        one["reason"].replace("|", "/"),
    ]
    return "| " + " | ".join(cells) + " |"
