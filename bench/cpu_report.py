"""Turns what `bench cpu` measured into bench/results/cpu.{json,md,png}. Must not measure anything."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from bench import charts, numbers
from bench.numbers import keep, short
from bench.table import Found

HEAD = """# Ours and rivals on CPUs: a layer, a call of a denoiser, a whole picture

Made by `python -m bench cpu`. Each rival in a process of its own with {threads} threads, in interleaved rounds:
{rounds} timed calls after {warm} that are not; medians. {processor}; {dates}. Load average before and after each heat:
{load}. Versions: {versions}.

Models have public sizes and random weights (`bench/public.py`), text encoder and autoencoder are small: errors rank
ways to round, and say nothing of pictures that people look at. Error: relative, against float32. "Ours" is `tfmq-w8a8`
in the same heat. A call has two rows, both branches of one picture. Pictures take 25 steps. "+ plan": with the guidance
plan that shapes-unet's shipped artifacts have (17 of 25 unconditional passes left out); its error is against full
guidance in float32, and a random model's branches hardly differ.
"""

AIMS: Final = {"call": 1.0, "picture": 1.25, "product": 0.6}
NNCF: Final = ("openvino-nncf-int8", "openvino-nncf-int8-f32")
OURS: Final = "tfmq-w8a8"


def write(name: str, facts: Found, found: Sequence[Found]) -> None:
    """Writes JSON, Markdown and a picture."""
    keep(name, {**facts, "subjects": list(found)}, markdown(facts, found))
    sets = [(one["subject"], bars) for one in _pictures(found) if (bars := _bars(one))]
    if sets:
        charts.bars(sets, "ms a call", numbers.RESULTS / f"{name}.png")


def markdown(facts: Found, found: Sequence[Found]) -> str:
    """The whole page."""
    machine = facts["machine"]
    loads = [" to ".join(f"{part[0]:.2f}" for part in pair) for one in found for pair in one["load"]]
    dates = ", ".join(sorted({one["date"] for one in found}))
    told = {"processor": machine["processor"], "dates": dates, "load": "; ".join(loads) or "-"}
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    parts = [HEAD.format(**told, versions=versions, **{key: facts[key] for key in ("threads", "rounds", "warm")})]
    parts += ["## Measured peaks", "", *[_peak(form, rate) for form, rate in facts["peaks"].items()]]
    for one in _pictures(found):
        parts += ["", f"## {one['subject']}", "", *_table(one), "", *_whole(one, facts["peaks"]), *_apart(one)]
    layers = [one for one in found if one not in _pictures(found)]
    if layers:
        parts += ["", "## Single layers, ms", "", *_layers(layers, facts["peaks"]["int8"]), "", *_apart(layers[0])]
    return "\n".join([*parts, "", "## Verdict", "", *verdict(found), ""])


def _pictures(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if not one["subject"].startswith(("linear-", "conv-"))]


def _peak(form: str, rate: float) -> str:
    return f"- {form}: {rate / 1e9:.0f} billion operations a second"


def _table(one: Found) -> list[str]:
    """A line for each rival that ran."""
    titles = ["rival", "call, ms", "to ours", "error of a call, %", "picture, s", "to ours", "rows run"]
    titles += ["error of final latents, %", "opened in, s", "first call, s"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in one["rows"]:
        if "failed" not in row:
            name = f"{row['rival']} + plan" if row.get("planned") else row["rival"]
            ours: Found = row.get("ours", {})
            cells = [name, _middle(row, "call_seconds", 1000), _ratio(row, ours, "call_seconds")]
            cells += [_number(row.get("call_error"), 100), _middle(row, "picture_seconds")]
            cells += [_ratio(row, ours, "picture_seconds"), str(row.get("picture_rows", "-"))]
            cells += [_number(row.get("picture_error"), 100), _number(row.get("open_seconds"))]
            lines.append("| " + " | ".join([*cells, _number(row.get("first_call_seconds"))]) + " |")
    return lines


def _whole(one: Found, peaks: Found) -> list[str]:
    """What a call amounts to, and what float32 and ours reach of their formats' peaks with all that is in it."""
    rows = {row["rival"]: row for row in one["rows"] if "failed" not in row and not row.get("planned")}
    told = f"- A call has {one['macs'] / 1e9:.3g} billion multiply-adds"
    for name, form in (("torch-fp32", "float32"), (OURS, "int8")):
        seconds = median(rows.get(name, {}), "call_seconds")
        if seconds is not None:
            told += f"; {name} does them at {2 * one['macs'] / seconds / peaks[form]:.0%} of the {form} peak"
    return [f"{told}."]


def _apart(one: Found) -> list[str]:
    """Who did not run, and why; what rows are; what products reach."""
    told = [f"- {row['rival']} is not here: {row['failed']}" for row in one["rows"] if "failed" in row]
    told += [
        f"- {row['rival']} drew no picture: {row['picture_failed']}" for row in one["rows"] if "picture_failed" in row
    ]
    told += [f"- {row['rival']}: {row['note']}" for row in one["rows"] if row.get("note") and not row.get("planned")]
    products = one.get("products")
    if products and products["large_products"]:
        told.append(
            f"- Ours runs {products['products']} integer products a call, {products['large_products']} of 1024 rows or "
            f"more; these reach {products['large_share']:.0%} of the measured int8 peak together, the median one "
            f"{products['large_median']:.0%}, the worst {products['large_worst']:.0%}."
        )
    return told


def _layers(layers: Sequence[Found], peak: float) -> list[str]:
    names = list(dict.fromkeys(row["rival"] for one in layers for row in one["rows"] if "failed" not in row))
    lines = ["| layer | " + " | ".join(names) + " | ours, share of int8 peak |", "|---" * (len(names) + 2) + "|"]
    for one in layers:
        rows = {row["rival"]: row for row in one["rows"] if "failed" not in row}
        cells = [_middle(rows.get(name, {}), "call_seconds", 1000) for name in names]
        seconds = median(rows.get(OURS, {}), "call_seconds")
        share = "-" if seconds is None else f"{2 * one['macs'] / seconds / peak:.0%}"
        lines.append("| " + " | ".join([one["subject"], *cells, share]) + " |")
    return lines


def verdict(found: Sequence[Found]) -> list[str]:
    """The aims, and whether the numbers above reach them; what could not be judged, and why."""
    told = []
    for one in _pictures(found):
        rows = {(row["rival"], bool(row.get("planned"))): row for row in one["rows"] if "failed" not in row}
        rivals = [rows[name, False] for name in NNCF if (name, False) in rows]
        if (OURS, False) not in rows or not rivals:
            told.append(f"- {one['subject']}: not judged, as {OURS} or OpenVINO + NNCF did not run.")
            continue
        told += _against(one["subject"], rows[OURS, False], rivals)
        products = one.get("products")
        if products and products["large_share"] is not None:
            share = products["large_share"]
            told.append(
                f"- {one['subject']}: integer products of 1024 rows or more reach {share:.0%} of the int8 peak (aim "
                f"{AIMS['product']:.0%}): {_judged(share >= AIMS['product'])}."
            )
    return told


def _against(name: str, ours: Found, rivals: Sequence[Found]) -> list[str]:
    """Ours against the faster, and against the nearer, of NNCF's variants."""
    told = []
    call = min(_relative(row, "call_seconds", "call_seconds") for row in rivals)
    told.append(
        f"- {name}: OpenVINO + NNCF int8 takes {call:.2f}x ours a call (aim 1): {_judged(call >= AIMS['call'])}."
    )
    pictures = [row for row in rivals if row.get("picture_seconds") and row["ours"]["planned_picture_seconds"]]
    if pictures:
        picture = min(_relative(row, "picture_seconds", "planned_picture_seconds") for row in pictures)
        told.append(
            f"- {name}: and {picture:.2f}x ours with the plan a picture (aim {AIMS['picture']}): "
            f"{_judged(picture >= AIMS['picture'])}."
        )
    nearest = min(row["call_error"] for row in rivals)
    told.append(
        f"- {name}: a call's error is {ours['call_error']:.2%}, theirs {nearest:.2%} (aim less): "
        f"{_judged(ours['call_error'] < nearest)}."
    )
    return told


def _judged(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _relative(row: Found, field: str, of_ours: str) -> float:
    return float(statistics.median(row[field]) / statistics.median(row["ours"][of_ours]))


def median(row: Found, field: str) -> float | None:
    """Of a row's list of numbers; None where there is none."""
    return statistics.median(row[field]) if row.get(field) else None


def _middle(row: Found, field: str, factor: float = 1.0) -> str:
    return _number(median(row, field), factor)


def _number(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else short(value * factor)


def _ratio(row: Found, ours: Found, field: str) -> str:
    mine, other = median(ours, field), median(row, field)
    return "-" if mine is None or other is None else f"{other / mine:.2f}x"


def _bars(one: Found) -> dict[str, float]:
    rows: dict[str, Any] = {row["rival"]: median(row, "call_seconds") for row in one["rows"] if not row.get("planned")}
    return {name: 1000 * seconds for name, seconds in rows.items() if seconds is not None}
