"""Turns measured rows into docs/results/video.{json,md,png}. Must not measure anything."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.table import Columns, Found, bars, lines
from bench.video_rows import BASES, METHODS, RIVALS

OUT = Path("docs/results")
NNCF: Final = ("openvino-nncf-int8", "openvino-nncf-int8-f32")
OURS: Final = ("tfmq-w8a8", "trdq-w8a8")
POINT: Final = 0.01

HEAD = """# Videos: what profiles are like beside float, and their steps beside rivals'

Made by `python -m bench video` (resumes row by row); numbers also in `video.json`. {model}: {frames} frames of
{width}x{height} pixels, {steps} steps, guidance {guidance:g}; {prompts} unseen prompts, the same seeds and noise for
all rows. Calibration prompts: {observed_prompts} for ranges, rotations and plans, {calibration_prompts} to learn
rounding on. {done} of {rows} rows are measured so far. {processor}, {date}.

PSNR and SSIM are to float's frames, before encoding, means over films (SSIM also over frames). *Right* is a share of
films, read by the checker: *thing* its count, colour and shape; *motion*; *all*, with the background. *Still parts
change* is the mean change from frame to frame, in levels of 255, of what is still in float's film of the same prompt
and seed; *change error* the root mean square of how changes differ from float's, over all pixels, 0 to 1. Seconds are
of one film drawn alone, medians of rounds in turn with float's: *step* is the denoiser's share of one step, both
branches; *film* has text encoder and autoencoder, which stay float, in it.

`rtn`: all layers to nearest, a scale for each tensor. `smoothquant`: channel factors, exponent 0.5, a scale for each
token. `tfmq`, `trdq` and `trdq + cfg`: as shipped.
"""

COLUMNS: Final[Columns] = {
    "psnr_db": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "change_error": ("change error", ".5f"),
    "still_change": ("still parts change", ".4f"),
    "percent_thing": ("thing right, %", ".1f"),
    "percent_motion": ("motion right, %", ".1f"),
    "percent_right": ("all right, %", ".1f"),
    "step_ms": ("step, ms", ".1f"),
    "step_speed": ("of float's speed", ".2f"),
    "film_seconds": ("film, s", ".2f"),
    "megabytes": ("MB", ".2f"),
    "share": ("of float32", ".3f"),
    "percent_saved": ("multiply-adds saved, %", ".1f"),
}


def write(facts: Found, truth: Found, found: Sequence[Found], beside: Sequence[Found]) -> None:
    """Writes JSON, Markdown and a picture."""
    OUT.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, "float": truth, "rows": list(found), "beside": list(beside)}
    (OUT / "video.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (OUT / "video.md").write_text(markdown(facts, truth, found, beside), encoding="utf-8")
    bars(_tables(found), METHODS, RIVALS, OUT / "video.png")


def markdown(facts: Found, truth: Found, found: Sequence[Found], beside: Sequence[Found]) -> str:
    """The whole page."""
    machine, at = facts["machine"], facts["defaults"]
    told = {name: facts[name] for name in ("model", "prompts", "observed_prompts", "calibration_prompts")}
    told |= {"frames": at["num_frames"], "width": at["width"], "height": at["height"]}
    told |= {"steps": at["num_inference_steps"], "guidance": at["guidance_scale"]}
    told |= {"done": len(found), "rows": sum(map(len, BASES.values()))}
    parts = [HEAD.format(**told, processor=machine["processor"], date=machine["date"])]
    for title, rows in _tables(found):
        own = {**truth, "method": "float", "psnr_db": None, "ssim": None, "change_error": None}
        own |= {"seconds": rows[0]["float_seconds"], "float_seconds": rows[0]["float_seconds"], "saving": None}
        scaled = [_scaled(row, truth) for row in (own, *rows)]
        parts += ["", f"## {title}", "", *lines(scaled, ("float", *METHODS), COLUMNS)]
    for one in beside:
        parts += ["", f"## A call beside rivals: {one['subject']}", "", *_calls(one, facts)]
    return "\n".join([*parts, "", "## Verdict", "", *verdict(truth, found, beside), "", "![PSNR](video.png)", ""])


def _tables(found: Sequence[Found]) -> list[tuple[str, list[Found]]]:
    sets = [(f"W{bits[0]}A{bits[1]}", [row for row in found if tuple(row["bits"]) == bits]) for bits in BASES]
    return [(title, rows) for title, rows in sets if rows]


def _scaled(row: Found, truth: Found) -> Found:
    seconds, floats = row["seconds"], row["float_seconds"]
    return {
        **row,
        "percent_thing": 100 * row["thing_accuracy"],
        "percent_motion": 100 * row["motion_accuracy"],
        "percent_right": 100 * row["prompt_accuracy"],
        "step_ms": 1000 * seconds["step"],
        "step_speed": floats["step"] / seconds["step"],
        "film_seconds": seconds["total"],
        "megabytes": row["bytes"] / 1e6,
        "share": row["bytes"] / truth["bytes"],
        "percent_saved": None if row["saving"] is None else 100 * row["saving"],
    }


def _calls(one: Found, facts: Found) -> list[str]:
    """Medians of the rivals' calls."""
    told = [
        f"A call has two rows, both branches of one film; medians of {facts['rounds']} rounds in turn, "
        f"{facts['threads']} threads each.",
        "",
        "| | call, ms | error of a call, % |",
        "|---|---|---|",
    ]
    for row in one["rows"]:
        if "failed" not in row:
            took = 1000 * statistics.median(row["call_seconds"])
            told.append(f"| {row['rival']} | {took:.1f} | {100 * row['call_error']:.2f} |")
    absent = {row["rival"]: row["failed"] for row in one["rows"] if "failed" in row} | one["absent"]
    return [*told, "", *(f"- {name} did not run: {why}" for name, why in absent.items())]


def verdict(truth: Found, found: Sequence[Found], beside: Sequence[Found]) -> list[str]:
    """The aims, and whether the numbers above reach them."""
    told = []
    for row in found:
        if tuple(row["bits"]) == (8, 8) and row["method"] not in RIVALS:
            lost = [truth[name] - row[name] for name in ("thing_accuracy", "motion_accuracy", "prompt_accuracy")]
            worst = max(lost)
            change, own = row["still_change"], truth["still_change"]
            flickers = "nothing is still" if change is None or own is None else f"{change - own:+.4f} levels of 255"
            told.append(
                f"- {row['method']} W8A8: {100 * worst:+.1f} points of accuracy lost at most, of thing, motion and all "
                f"(aim at most 1: {'met' if worst <= POINT else 'missed'}); still parts change by {flickers} to "
                "float's (aim: no more)."
            )
    return told + [line for one in beside if (line := _step_verdict(one))]


def _step_verdict(one: Found) -> str:
    took = {row["rival"]: statistics.median(row["call_seconds"]) for row in one["rows"] if "failed" not in row}
    rivals, ours = [name for name in NNCF if name in took], [name for name in OURS if name in took]
    if not rivals or not ours:
        return f"- {one['subject']}: NNCF did not run, or ours did not."
    best, fast = min(rivals, key=took.__getitem__), min(ours, key=took.__getitem__)
    ratio = took[best] / took[fast]
    reached = "met" if ratio > 1 else "missed"
    return f"- {one['subject']}: {fast} is {ratio:.2f}x as fast as {best} (aim: faster: {reached})."
