"""The table of temporal maintenance: its rows, what they may share, how it is made, and that its page says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.live import Live

import quant
from bench import table, tfmq, tfmq_report
from bench.table import Kept
from bench.tfmq_report import COLUMNS, markdown
from bench.tfmq_rows import ABLATION, METHODS, MIXED, SEEDS, rows
from zoo import build

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
    numbers: dict[str, Any] = dict.fromkeys([*COLUMNS, "bytes"], 0.5)
    found = [
        {"method": row.method, "bits": list(row.bits), "seed": row.seed, "scope": row.scope, **numbers} for row in ROWS
    ]
    for row in found:
        row["psnr_db"] = 44.0 if row["method"] == "selected-mixed" else 40.0
        if (row["method"], row["seed"]) == ("selected-mixed", 1):
            row["psnr_db"] = None  # every picture is identical
    machine = {"cores": 2, "processor": "a processor", "date": "2026-01-01"}
    facts = {
        "iterations": 8,
        "temporal_iterations": 16,
        "prompts": 4,
        "calibration_prompts": 2,
        "observed_prompts": 1,
        "machine": machine,
    }
    page = markdown(facts, {"prompt_accuracy": 0.5, "frechet": None}, found)
    for name in (*METHODS, *MIXED):
        assert f"| {name} |" in page
    assert "44.00 dB, +4.00 dB over" in page
    assert "+0.00 points below float" in page


def test_one_command_makes_the_table_from_nothing_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = build.model_defaults(build.ZOO / "models" / tfmq.MODEL).model_copy(update={"num_inference_steps": 2})
    chosen = [row for row in ROWS if row.name in ("rtn-w8a8-all-0", "cache-w4a8-temporal-0")]
    settings = {
        "WORK": tmp_path,
        "PROMPTS": 2,
        "CALIBRATION_PROMPTS": 2,
        "OBSERVED_PROMPTS": 1,
        "rows": lambda *iterations: chosen,
    }
    for name, value in settings.items():
        monkeypatch.setattr(tfmq, name, value)
    for place in (tfmq, table, build):
        monkeypatch.setattr(place, "model_defaults", lambda folder: short)
    shown, written, kept = [0], list[Any](), list[str]()
    start, stop, keep = Live.start, Live.stop, Kept.write

    def start_alone(self: Live, refresh: bool = False) -> None:
        assert shown == [0], "a live display inside another"  # an error in early versions of rich 14
        shown[0] += 1
        start(self, refresh)

    def stop_counted(self: Live) -> None:
        shown[0] -= 1
        stop(self)

    def keep_once(self: Kept, name: str, found: dict[str, Any]) -> None:
        if name != "float" and kept:
            raise KeyboardInterrupt
        kept.extend([name] if name != "float" else [])
        keep(self, name, found)

    monkeypatch.setattr(Live, "start", start_alone)
    monkeypatch.setattr(Live, "stop", stop_counted)
    monkeypatch.setattr(tfmq_report, "write", lambda *table: written.append(table))
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(Kept, "write", keep_once)
        tfmq.run()
    assert not written
    measured = (tmp_path / "rows" / f"{kept[0]}.json").read_bytes()
    monkeypatch.setattr(tfmq, "_build", lambda *order: pytest.fail("built again"))
    tfmq.run()
    assert (tmp_path / "rows" / f"{kept[0]}.json").read_bytes() == measured
    ((facts, float_row, found),) = written
    assert (facts["prompts"], float_row["psnr_db"], float_row["identical"]) == (2, None, 2)
    assert {row["method"]: row["scope"] for row in found} == {"rtn": "all", "cache": "temporal"}
    assert all(row["build_seconds"] > 0 and row["psnr_db"] > 20 for row in found)
