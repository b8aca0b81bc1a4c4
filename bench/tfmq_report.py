"""Turns measured rows into docs/results/tfmq.{json,md,png}. Must not measure anything."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from bench.table import Columns, Found, bars, lines
from bench.tfmq_rows import METHODS, MIXED, RIVALS

SHOWN = (*METHODS, *MIXED)

OUT = Path("docs/results")

HEAD = """# Temporal features kept: what each way is worth

Made by `python -m bench tfmq` (resumes row by row); numbers also in `tfmq.json`. Model: shapes-unet, 25 DDIM steps,
guidance 3; {prompts} unseen prompts, the same seeds and noise for all rows. Calibration prompts: {observed_prompts} for
ranges, {calibration_prompts} to learn rounding on. {iterations} iterations of batch 32 for every block of every method
but rtn, {temporal_iterations} for TIAR as published. Each row was made on {cores} core(s) of {processor}, {date}, and
drawn by the openvino backend. Higher is better for PSNR, SSIM, cosine and accuracy. PSNR is a mean over the pictures
that are not identical with float's; without a number all are. Build seconds count calibration and all reconstruction of
a row, also where rows shared it.

`rtn`, `ptq4dm` and `qdiffusion` are our implementations of those methods' ideas on the same grids and kernels; they
quantize temporal layers as all others. `-mixed`: the most sensitive layers have 8-bit weights, as in the recipe that is
shipped; for a rival too.
"""

COLUMNS: Columns = {
    "psnr_db": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "trajectory_distance": ("trajectory distance", ".4f"),
    "temporal_cosine_worst": ("temporal cosine, worst step", ".5f"),
    "mismatch_rate": ("mismatch rate", ".3f"),
    "prompt_accuracy": ("prompt accuracy", ".3f"),
    "frechet": ("Fréchet distance", ".3f"),
    "megabytes": ("MB", ".2f"),
    "build_seconds": ("build s", ".0f"),
}
"""Field of a row to its heading and format."""


def write(facts: Found, float_row: Found, found: Sequence[Found]) -> None:
    """Writes JSON, Markdown and a picture."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, "float": float_row, "rows": list(found)}
    (OUT / "tfmq.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (OUT / "tfmq.md").write_text(markdown(facts, float_row, found), encoding="utf-8")
    sets = [(title.partition(",")[0], rows) for title, rows in _tables(found)]
    bars(sets, SHOWN, (*RIVALS, "qdiffusion-mixed"), OUT / "tfmq.png")
    print((OUT / "tfmq.md").read_text(encoding="utf-8"))


def markdown(facts: Found, float_row: Found, found: Sequence[Found]) -> str:
    """The whole page."""
    head = HEAD.format(
        **facts, cores=facts["machine"]["cores"], processor=facts["machine"]["processor"], date=facts["machine"]["date"]
    )
    told = (
        f"Float: prompt accuracy {float_row['prompt_accuracy']:.3f}, Fréchet distance {_shown(float_row, 'frechet')}."
    )
    parts = [head, told, ""]
    for title, rows in _tables(found):
        parts += [
            f"## {title}",
            "",
            *lines([{**row, "megabytes": row["bytes"] / 1e6} for row in rows], SHOWN, COLUMNS),
            "",
        ]
    parts += ["## Verdict", "", *verdict(float_row, found), ""]
    parts += ["![PSNR by method](tfmq.png)", ""]
    return "\n".join(parts)


def _tables(found: Sequence[Found]) -> list[tuple[str, list[Found]]]:
    main = [row for row in found if row["scope"] == "all"]
    sets = []
    for bits in ([4, 8], [8, 8], [4, 32]):
        rows = [row for row in main if list(row["bits"]) == bits]
        seeds = len({row["seed"] for row in rows})
        spread = f", mean and deviation over {seeds} calibration seeds" if seeds > 1 else ""
        sets.append((f"W{bits[0]}A{bits[1]}{spread}", rows))
    apart = [row for row in found if row["scope"] == "temporal"]
    sets.append(("Ablation: only temporal layers quantized, W4A8, everything unrelated to time float", apart))
    return [(title, rows) for title, rows in sets if rows]


def _shown(row: Found, field: str) -> str:
    value = row.get(field)
    return "-" if value is None else format(value, COLUMNS[field][1])


def verdict(float_row: Found, found: Sequence[Found]) -> list[str]:
    """The aims, and whether the numbers above reach them."""
    main = [row for row in found if row["scope"] == "all"]
    best_rival, best_ours = (_best(main, [4, 8], rivals) for rivals in (True, False))
    gain = best_ours[1] - best_rival[1]
    rival = f"{best_rival[0]} ({best_rival[1]:.2f} dB), the best rival that quantizes its temporal layers"
    lines = [f"- W4A8 PSNR, equal bits everywhere: {best_ours[0]} {best_ours[1]:.2f} dB, {gain:+.2f} dB over {rival}."]
    shipped, mixed_rival = (_mean(main, [4, 8], name, "psnr_db") for name in ("selected-mixed", "qdiffusion-mixed"))
    lines.append(
        f"- W4A8 PSNR as shipped (selected-mixed): {shipped:.2f} dB, {shipped - best_rival[1]:+.2f} dB over "
        f"{best_rival[0]} (aim +3), {shipped - mixed_rival:+.2f} dB over qdiffusion-mixed."
    )
    for bits, aim in (([8, 8], 0.5), ([4, 8], 2.0)):
        rows = [
            row
            for row in main
            if list(row["bits"]) == bits and row["method"] == ("selected-mixed" if bits == [4, 8] else "selected")
        ]
        lost = 100 * (float_row["prompt_accuracy"] - statistics.fmean(row["prompt_accuracy"] for row in rows))
        lines.append(
            f"- W{bits[0]}A{bits[1]} prompt accuracy, selected: {lost:+.2f} points below float (aim at most {aim})."
        )
    slow, fast = (_mean(main, [4, 8], method, "build_seconds") for method in ("qdiffusion", "cache"))
    lines.append(
        f"- W4A8 build: cache {fast:.0f} s against {slow:.0f} s of qdiffusion: {slow / fast:.2f}x faster (aim 2x)."
    )
    return lines


def _best(rows: Sequence[Found], bits: list[int], rivals: bool) -> tuple[str, float]:
    methods = [method for method in METHODS if (method in RIVALS) == rivals]
    scores = {method: _mean(rows, bits, method, "psnr_db") for method in methods}
    name = max(scores, key=lambda method: scores[method])
    return name, scores[name]


def _mean(rows: Sequence[Found], bits: list[int], method: str, field: str) -> float:
    mine = [row for row in rows if list(row["bits"]) == bits and row["method"] == method]
    values = [row[field] for row in mine if row[field] is not None]
    return statistics.fmean(values) if values else math.nan
