"""Turns measured rows into docs/results/tune.{json,md,png}. Must not measure anything."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.table import Found
from halftone.profile_plot import plot_profiles
from jobs.pareto import Place

OUT = Path("docs/results")

HEAD = """# Tuned recipes beside shipped ones

Made by `python -m bench tune` (resumes row by row); numbers also in `tune.json`. 25 DDIM steps, guidance 3; {prompts}
unseen prompts that no search knew, the same seeds and noise for all rows. A search measures on {measured} calibration
prompts, draws every recipe that it builds on {checked} others, and holds the result to {held_out} others; those that
are called `learned` round to nearest first, then learn rounding on {learned_on} calibration prompts more. {done} of
{rows} rows are measured so far, on {processor}, {date}. Time is of a picture, eight drawn together, as a share of
float's, all profiles of a model in turn in one run on as many cores as its table says (`taskset -c 0` holds a run to
one): medians of {rounds} rounds.
"""

TITLES: Final = ("profile", "MB", "PSNR dB", "prompt accuracy", "time, of float's", "plan saves", "recipes built")


def write(facts: Found, rows: int, found: Sequence[Found]) -> None:
    """Writes JSON, Markdown and a picture."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, "rows": list(found)}
    (OUT / "tune.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (OUT / "tune.md").write_text(markdown(facts, rows, found), encoding="utf-8")
    models = dict.fromkeys(row["model"] for row in found)
    if models:
        places = {model: _places(found, model) for model in models}
        plot_profiles(OUT / "tune.png", places, "time of a picture, of float's")


def markdown(facts: Found, rows: int, found: Sequence[Found]) -> str:
    """The whole page."""
    machine = facts["machine"]
    told = {name: value for name, value in facts.items() if name != "machine"}
    parts = [HEAD.format(**told, done=len(found), rows=rows, processor=machine["processor"], date=machine["date"])]
    for model in dict.fromkeys(row["model"] for row in found):
        mine = [row for row in found if row["model"] == model]
        cores = facts["cores"].get(model, "-")
        parts += [f"## {model} (times: {cores} of the cores)", "", *_table(mine), "", *_dominance(mine), ""]
    return "\n".join([*parts, "![PSNR against time and bytes](tune.png)", ""])


def _table(mine: Sequence[Found]) -> list[str]:
    lines = ["| " + " | ".join(TITLES) + " |", "|---" * len(TITLES) + "|"]
    for row in sorted(mine, key=lambda row: (not row["tuned"], row["bytes"])):
        cells = [
            f"**{row['profile']}**" if row["tuned"] else row["profile"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{_db(row):.2f}",
            f"{row['prompt_accuracy']:.3f}",
            f"{row['time']:.3f}" if row["time"] else "-",
            f"{row['saving']:.0%}" if row["saving"] else "-",
            str(row.get("recipes_built", "-")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _dominance(mine: Sequence[Found]) -> list[str]:
    """For each shipped recipe the tuned ones that are better at no more bytes, at no more time, and at neither more."""
    tuned = [row for row in mine if row["tuned"]]
    lines = [
        "| shipped | better at no more bytes | better at no more time | better at no more of both |",
        "|---|---|---|---|",
    ]
    for row in mine:
        if not row["tuned"]:
            better = [one for one in tuned if _db(one) >= _db(row)]
            smaller = [one for one in better if one["bytes"] <= row["bytes"]]
            faster = [one for one in better if one["time"] and row["time"] and one["time"] <= row["time"]]
            both = [one for one in smaller if one in faster]
            lines.append(f"| {row['profile']} | {_by(smaller, row)} | {_by(faster, row)} | {_by(both, row)} |")
    return lines


def _by(found: Sequence[Found], row: Found) -> str:
    """The one that gains most, and how it stands to the shipped one."""
    if not found:
        return "none"
    best = max(found, key=_db)
    told = f"{best['profile']}: {_db(best) - _db(row):+.1f} dB, {best['bytes'] / row['bytes']:.2f} of its bytes"
    return told + (f", {best['time'] / row['time']:.2f} of its time" if best["time"] and row["time"] else "")


def _db(row: Found) -> float:
    """Mean PSNR; infinite where every picture is identical with float's."""
    return math.inf if row["psnr_db"] is None else float(row["psnr_db"])


def _places(found: Sequence[Found], model: str) -> list[Place]:
    return [Place(row["profile"], _db(row), row["time"], row["bytes"]) for row in found if row["model"] == model]
