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
  matter most, as shipped (W4A8, one seed); all other rows have the same bits everywhere. `+ cache`: temporal features
  in tables. `+ cfg`: and a guidance plan.

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
        spread = f", mean and deviation over up to {made} of {len(seeds)} calibration seeds" if len(seeds) > 1 else ""
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
    """The aims, and whether the numbers above reach them, each over the seeds that both sides have."""
    told = [_against(found, rival) for rival in ("smoothquant", "vidit-q-like")]
    nearest, learned = (_gain(found, method, "published") for method in ("served, nearest", "served"))
    told.append(
        f"- shapes-dit W4A8: served is {learned:+.2f} dB from published (aim at least -0.5), rounded to nearest "
        f"{nearest:+.2f} dB, at {_share(found, 'served', 'published'):.2f} of its weight bytes (aim 0.1)."
    )
    both, scaled = ("served + cache", "served + cache + cfg"), list(map(_scaled, found))
    lost, accuracy = _gain(found, *both), _gain(found, *both, "prompt_accuracy")
    slow, fast = _both(scaled, *both, "speed")
    (saved,) = _means([_by_seed(found, both[1], "saving")])
    told.append(
        f"- shapes-dit W4A8: the guidance plan saves {saved:.1%} of the multiply-adds (aim 35%) at {lost:.2f} dB "
        f"(aim under 1) and {100 * accuracy:.2f} points of prompt accuracy (aim under 0.5), {fast / slow:.2f}x as fast."
    )
    return told


def _against(found: Sequence[Found], rival: str) -> str:
    """What ours gain over a baseline, and at which of its weight bytes."""
    gains = [
        f"{method} is {_gain(found, method, rival):+.2f} dB from {rival} "
        f"at {_share(found, method, rival):.2f} of its weight bytes"
        for method in ("served", "served, mixed")
    ]
    return f"- shapes-dit W4A8: {'; '.join(gains)} (aim +3)."


def _gain(found: Sequence[Found], method: str, other: str, field: str = "psnr_db") -> float:
    mine, theirs = _both(found, method, other, field)
    return mine - theirs


def _share(found: Sequence[Found], method: str, other: str) -> float:
    mine, theirs = _both(found, method, other, "bytes")
    return mine / theirs


def _both(found: Sequence[Found], one: str, other: str, field: str) -> list[float]:
    """Means of two methods over the seeds that both have."""
    return _means([_by_seed(found, method, field) for method in (one, other)])


def _means(methods: Sequence[Mapping[int, float]]) -> list[float]:
    seeds = set.intersection(*(set(values) for values in methods))
    return [statistics.fmean(values[seed] for seed in seeds) if seeds else math.nan for values in methods]


def _by_seed(found: Sequence[Found], method: str, field: str) -> dict[int, float]:
    """Of shapes-dit at W4A8."""
    return {
        row["seed"]: row[field]
        for row in found
        if (row["model"], row["method"], tuple(row["bits"])) == ("shapes-dit", method, (4, 8))
        and row[field] is not None
    }
