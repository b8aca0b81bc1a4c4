"""Turns measured rows into docs/results/trdq.{json,md,png}. Must not measure anything."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.table import Columns, Found, bars, lines
from bench.trdq_rows import BASES, RIVALS, SEEDS

OUT = Path("docs/results")

HEAD = """# Rotations, time ranges and guidance plans: what each is worth

Made by `python -m bench trdq` (resumes row by row); numbers also in `trdq.json`. 25 DDIM steps, guidance 3; {prompts}
unseen prompts, the same seeds and noise for all rows. Calibration prompts: {observed_prompts} for ranges, rotations and
plans, {calibration_prompts} to learn rounding on. {done} of {rows} rows are measured so far. Each was made on one core
of {processor}, {date}. Higher is better for PSNR, SSIM, cosine and accuracy. Speed is of eight pictures drawn together,
beside float's in turn on the same core, for the first seed; the reference backend, which exists to define what is
correct, has none. Outlier ratio: largest channel peak over the median one, mean of the layers that are rounded.

- `rtn`: all layers to nearest, a scale for each tensor. `smoothquant`: channel factors, exponent 0.5, and a scale for
  each token as it comes.
- `vidit-q-like`: two ranges of time with factors and integers of their own, exponent 0.11, a scale and zero point for
  each token as it comes, asymmetric weights by least and greatest.
- `rotation`: rtn after Hadamard rotations. `ranges`: rtn with a scale for each range.
- `published`: TR-DQ as its authors' code has it: 20 ranges, each with own factors (exponent searched), greedy rotation,
  permutation and 4-bit copy of all weights. It has no fast form: reference backend.
- `served`: one rotation, one factor for each channel, one integer weight; a scale for each token; AdaRound with
  {iterations} iterations a block (`served, nearest`: none). `served, mixed`: and 8-bit weights for the layers that
  matter most, as shipped; all other rows have the same bits everywhere. `+ cache`: temporal features in tables.
  `+ cfg`: and a guidance plan.

Rivals leave temporal layers float, as their papers do, and so does `served`; rtn, rotation and ranges round them too.
"""

COLUMNS: Final[Columns] = {
    "psnr_db": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "trajectory_distance": ("trajectory distance", ".4f"),
    "temporal_cosine_worst": ("temporal cosine, worst step", ".5f"),
    "mismatch_rate": ("mismatch rate", ".3f"),
    "prompt_accuracy": ("prompt accuracy", ".3f"),
    "megabytes": ("MB", ".2f"),
    "outliers_before": ("outlier ratio before", ".1f"),
    "outliers_after": ("after", ".1f"),
    "percent_saved": ("multiply-adds saved, %", ".1f"),
    "speed": ("speed, of float's", ".2f"),
    "build_seconds": ("build s", ".0f"),
}


def write(facts: Found, truths: Mapping[str, Found], found: Sequence[Found]) -> None:
    """Writes JSON, Markdown and a picture."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, "float": dict(truths), "rows": list(found)}
    (OUT / "trdq.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (OUT / "trdq.md").write_text(markdown(facts, truths, found), encoding="utf-8")
    sets = [(title.partition(",")[0], rows) for title, rows in _tables(found)]
    bars(sets, tuple(BASES), RIVALS, OUT / "trdq.png")


def markdown(facts: Found, truths: Mapping[str, Found], found: Sequence[Found]) -> str:
    """The whole page."""
    machine = facts["machine"]
    told = {name: value for name, value in facts.items() if name != "machine"}
    parts = [HEAD.format(**told, done=len(found), processor=machine["processor"], date=machine["date"])]
    parts += [
        f"{model} in float: prompt accuracy {one['prompt_accuracy']:.3f}." for model, one in truths.items() if one
    ]
    for title, rows in _tables(found):
        parts += ["", f"## {title}", "", *lines(list(map(_scaled, rows)), tuple(BASES), COLUMNS)]
    parts += ["", "## Verdict", "", *verdict(truths, found), "", "![PSNR by method](trdq.png)", ""]
    return "\n".join(parts)


def _tables(found: Sequence[Found]) -> list[tuple[str, list[Found]]]:
    sets = []
    for (model, bits), seeds in SEEDS.items():
        rows = [row for row in found if row["model"] == model and tuple(row["bits"]) == bits]
        made = len({row["seed"] for row in rows})
        spread = f", mean and deviation over {made} of {len(seeds)} calibration seeds" if len(seeds) > 1 else ""
        sets.append((f"{model} W{bits[0]}A{bits[1]}{spread}", rows))
    return [(title, rows) for title, rows in sets if rows]


def _scaled(row: Found) -> Found:
    return {
        **row,
        "megabytes": row["bytes"] / 1e6,
        "percent_saved": None if row["saving"] is None else 100 * row["saving"],
        "speed": row["float_seconds"] / row["seconds"] if row["seconds"] else None,
    }


def verdict(truths: Mapping[str, Found], found: Sequence[Found]) -> list[str]:
    """The aims, and whether the numbers above reach them."""
    told = [_against(found, rival) for rival in ("smoothquant", "vidit-q-like")]
    gap = _mean(found, "served, nearest", "psnr_db") - _mean(found, "published", "psnr_db")
    gap_learned = _mean(found, "served", "psnr_db") - _mean(found, "published", "psnr_db")
    share = _mean(found, "served", "bytes") / _mean(found, "published", "bytes")
    told.append(
        f"- shapes-dit W4A8: served is {gap_learned:+.2f} dB from published (aim at least -0.5), rounded to nearest "
        f"{gap:+.2f} dB, at {share:.2f} of its weight bytes (aim 0.1)."
    )
    fields, scaled = ("psnr_db", "prompt_accuracy", "speed", "saving"), list(map(_scaled, found))
    full, planned = (
        {field: _mean(scaled, method, field) for field in fields}
        for method in ("served + cache", "served + cache + cfg")
    )
    lost, accuracy = (full[field] - planned[field] for field in ("psnr_db", "prompt_accuracy"))
    faster, saved = planned["speed"] / full["speed"], planned["saving"]
    told.append(
        f"- shapes-dit W4A8: the guidance plan saves {saved:.1%} of the multiply-adds (aim 35%) at {lost:.2f} dB "
        f"(aim under 1) and {100 * accuracy:.2f} points of prompt accuracy (aim under 0.5), {faster:.2f}x as fast."
    )
    return told


def _against(found: Sequence[Found], rival: str) -> str:
    """What ours gain over a baseline, and at which of its weight bytes."""
    gains = []
    for method in ("served", "served, mixed"):
        gain = _mean(found, method, "psnr_db") - _mean(found, rival, "psnr_db")
        share = _mean(found, method, "bytes") / _mean(found, rival, "bytes")
        gains.append(f"{method} is {gain:+.2f} dB from {rival} at {share:.2f} of its weight bytes")
    return f"- shapes-dit W4A8: {'; '.join(gains)} (aim +3)."


def _mean(found: Sequence[Found], method: str, field: str, model: str = "shapes-dit") -> float:
    values = [
        row[field]
        for row in found
        if (row["model"], row["method"], tuple(row["bits"])) == (model, method, (4, 8)) and row[field] is not None
    ]
    return statistics.fmean(values) if values else math.nan
