"""The table of time rotation: its rows, what sets them apart, and that its page says what was found."""

from __future__ import annotations

from typing import Any

from bench import trdq_report
from bench.trdq_rows import BASES, OURS, RIVALS, SEEDS, recipe_of, rows

ROWS = rows(iterations=8)


def test_every_method_has_its_rows() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    wanted = [
        (model, method, bits, seed)
        for (model, bits), seeds in SEEDS.items()
        for seed in seeds
        for method in BASES
        if method != "served, mixed" or (bits == (4, 8) and seed == 0)
    ]
    assert [(row.model, row.method, row.bits, row.seed) for row in ROWS] == sorted(wanted, key=lambda one: one[3])
    assert {(row.recipe.weights.bits, row.recipe.activations.bits) for row in ROWS} == {bits for _, bits in SEEDS}


def test_rows_differ_in_what_their_names_say() -> None:
    served, mixed, cached, planned = (recipe_of(method, (4, 8), 0, 8) for method in OURS[1:])
    assert served.sensitive.bytes == cached.sensitive.bytes == 0 < mixed.sensitive.bytes
    assert (served.temporal.maintenance, cached.temporal.maintenance) == ("float", "cache")
    assert (cached.guidance.method, planned.guidance.method) == ("none", "plan")
    assert {one.rounding.method for one in (served, cached, planned)} == {"adaround"}
    nearest = recipe_of("served, nearest", (4, 8), 0, 8)
    assert nearest.rounding.method == "nearest" and nearest.rotation == served.rotation
    published = recipe_of("published", (4, 8), 0, 8)
    assert (published.weights.ranges, published.ranges.count, published.backend) == ("each", 20, "reference")
    assert recipe_of("vidit-q-like", (4, 8), 0, 8).weights.ranges == "each"
    assert recipe_of("rotation", (4, 8), 0, 8).rotation.method != "none"
    assert recipe_of("ranges", (4, 8), 0, 8).activations.steps == "ranges"


def test_the_page_tells_rows_and_verdict() -> None:
    numbers: dict[str, Any] = dict.fromkeys(trdq_report.COLUMNS, 0.5) | {"bytes": 4e6, "saving": None}
    found = [
        {"model": row.model, "method": row.method, "bits": list(row.bits), "seed": row.seed, **numbers} for row in ROWS
    ]
    for row in found:
        fast = row["method"] != "published"
        row |= {"float_seconds": 0.4 if fast else None, "seconds": 0.2 if fast else None}
        row["psnr_db"] = 36.0 if row["method"] in RIVALS else 40.0
        row["saving"] = 0.36 if row["method"].endswith("cfg") else None
    machine = {"processor": "a processor", "date": "2026-01-01"}
    facts = {
        "iterations": 8,
        "prompts": 4,
        "calibration_prompts": 2,
        "observed_prompts": 1,
        "rows": len(ROWS),
        "machine": machine,
    }
    truths: dict[str, dict[str, Any]] = {"shapes-dit": {"prompt_accuracy": 0.5}, "shapes-unet": {}}
    page = trdq_report.markdown(facts, truths, found)
    assert all(f"| {method} |" in page for method in BASES)
    assert f"{len(ROWS)} of {len(ROWS)} rows" in page
    assert "served is +4.00 dB from smoothquant" in page
    assert "served, mixed is +4.00 dB from vidit-q-like at 1.00 of its weight bytes" in page
    assert "saves 36.0% of the multiply-adds (aim 35%) at 0.00 dB" in page


def test_methods_are_compared_over_the_seeds_that_both_have() -> None:
    numbers = {"bytes": 1.0, "saving": None, "prompt_accuracy": 0.5, "seconds": None, "float_seconds": None}
    about = {"model": "shapes-dit", "bits": [4, 8], **numbers}
    found = [
        {**about, "method": "served", "seed": 0, "psnr_db": 40.0},
        {**about, "method": "smoothquant", "seed": 0, "psnr_db": 39.0},
        {**about, "method": "smoothquant", "seed": 1, "psnr_db": 30.0},
    ]
    told = "\n".join(trdq_report.verdict({}, found))
    assert "served is +1.00 dB from smoothquant" in told
    assert "served is +nan dB from vidit-q-like" in told, "not measured yet"
