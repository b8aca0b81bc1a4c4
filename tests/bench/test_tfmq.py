"""The table of temporal maintenance: its rows, what they may share, and that its page says what was measured."""

from __future__ import annotations

from typing import Any

import quant
from bench.tfmq_report import COLUMNS, markdown
from bench.tfmq_rows import ABLATION, METHODS, MIXED, SEEDS, rows

ROWS = rows(iterations=8, temporal_iterations=16)


def test_every_method_has_its_rows_at_equal_iterations() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    main = [(row.method, row.bits, row.seed) for row in ROWS if row.scope == "all"]
    plain = [(method, bits, seed) for bits, seeds in SEEDS.items() for seed in seeds for method in METHODS]
    assert sorted(main) == sorted(plain + [(name, (4, 8), seed) for seed in SEEDS[4, 8] for name in MIXED])
    assert sorted(row.method for row in ROWS if row.scope == "temporal") == sorted(ABLATION)
    learned = [row.recipe.rounding for row in ROWS if row.recipe.rounding.method == "adaround"]
    assert {(one.iterations, one.batch, one.learning_rate) for one in learned} == {(8, 32, 0.03)}


def test_rows_that_differ_in_time_alone_share_reconstructed_weights() -> None:
    ours = [row for row in ROWS if row.bits == (4, 8) and row.seed == 0 and row.scope == "all"]
    keys = {row.method: quant.reconstruction_key(row.recipe) for row in ours}
    assert keys["tiar"] == keys["tiar+fsc"] == keys["cache"] == keys["selected"]
    assert len({keys[name] for name in ("ptq4dm", "qdiffusion", "cache", "selected-mixed", "qdiffusion-mixed")}) == 5


def test_the_page_has_every_row_and_the_verdict() -> None:
    numbers: dict[str, Any] = dict.fromkeys(COLUMNS, 0.5)
    found = [
        {"method": row.method, "bits": list(row.bits), "seed": row.seed, "scope": row.scope, **numbers} for row in ROWS
    ]
    for row in found:
        row["psnr_db"] = 44.0 if row["method"] == "selected-mixed" else 40.0
    machine = {"cores": 2, "processor": "a processor", "date": "2026-01-01"}
    facts = {"iterations": 8, "temporal_iterations": 16, "prompts": 4, "calibration_prompts": 2, "machine": machine}
    page = markdown(facts, {"prompt_accuracy": 0.5, "frechet": None}, found)
    for name in (*METHODS, *MIXED):
        assert f"| {name} |" in page
    assert "44.00 dB, +4.00 dB over" in page
    assert "+0.00 points below float" in page
