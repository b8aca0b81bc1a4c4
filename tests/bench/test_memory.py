"""The bench of memory: a whole run on a small model, and verdicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import memory
from bench.cpu_cells import ANCHOR


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("local")
def test_a_whole_run(root: Path, results: Path) -> None:
    size = replace(memory.QUICK, rivals=("torch-fp32", "sdnq-int8", ANCHOR), root=root, threads=1)
    memory.run(size)
    (one,) = json.loads((results / "memory.json").read_text(encoding="utf-8"))["subjects"]
    rows = {memory.name_of(row): row for row in one["rows"] if "failed" not in row}
    assert {"torch-fp32", ANCHOR, f"{ANCHOR} + plan"} <= set(rows)
    for row in rows.values():
        assert row["peak"] >= row["rss_before"] > 1e7 and row["disk"] > 1e5
        assert row["load_seconds"] > 0 and row["picture_seconds"] > 0
    assert rows[ANCHOR]["disk"] < 0.6 * rows["torch-fp32"]["disk"]
    page = (results / "memory.md").read_text(encoding="utf-8")
    assert f"| {ANCHOR} + plan |" in page and "sdnq-int8" in page
    assert f"peak of {ANCHOR} is not judged, as OpenVINO + NNCF did not run" in page
    assert (results / "memory.png").stat().st_size > 1000


def test_layers_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="linear-64x32x48 is a layer: it draws no pictures"):
        memory.run(replace(memory.QUICK, subjects=("linear-64x32x48",), root=root))


def test_verdicts() -> None:
    peaks = {"torch-fp32": 4e9, "openvino-nncf-int8": 2e9, "openvino-nncf-int8-f32": 2.5e9, ANCHOR: 1.6e9}
    rows: list[dict[str, Any]] = [
        {"rival": name, "peak": peak, "disk": peak / 2, "load_seconds": 5.5} for name, peak in peaks.items()
    ]
    rows.append({"rival": ANCHOR, "planned": True, "peak": 1.8e9, "disk": 8e8, "load_seconds": 6.0})
    told = memory.verdict({"subject": "sd15@32", "rows": rows})
    assert f"- sd15@32: peak of {ANCHOR} is 0.400 of torch-fp32's (aim 0.5): reached." in told
    assert f"- sd15@32: peak of {ANCHOR} is 0.800 of openvino-nncf-int8's (aim 0.85): reached." in told
    assert f"- sd15@32: peak of {ANCHOR} + plan is 0.900 of openvino-nncf-int8's (aim 0.85): not reached." in told
    assert f"- sd15@32: disk of {ANCHOR} is 0.400 of torch-fp32's (aim 0.27): not reached." in told
    assert "- sd15@32: disk of tfmq-w4a8 is not judged, as tfmq-w4a8 did not run." in told
    assert f"- sd15@32: {ANCHOR} loads in 5.50 s (aim 5): not reached." in told
