"""The fidelity report of shipped artifacts: rows are kept while they hold, made anew when not, told in tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zoo import report
from zoo.build import ZOO

ARTIFACT = ZOO / "artifacts" / "shapes-unet" / "w8a8"


def made_up(artifact: Path, count: int, **changes: Any) -> report.Row:
    numbers: dict[str, Any] = dict.fromkeys(report.MEASURED, 0.5) | {"ms_ssim_scales": 3, "identical": 0}
    facts = {"model": "shapes-unet", "profile": artifact.name, "backend": "openvino", "prompts": count}
    sizes = {"weight_bits": 8, "activation_bits": 8, "weights_bytes": 10, "float_weights_bytes": 40}
    build = {"prompts": 256, "psnr_db": 54.0, "prompt_accuracy": 0.8, "float_prompt_accuracy": 0.9, "seconds": 1.0}
    key = report.key_of(artifact, count)
    return {
        **facts, **sizes, **numbers, "key": key, "guidance_saving": None, "build": build | {"float_seconds": 2.0},
        **changes,
    }  # fmt: skip


def test_rows_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(model: object, artifact: Path, count: int, cache: Path, tell: object) -> report.Row:
        calls.append(count)
        return made_up(artifact, count)

    monkeypatch.setattr(report, "measure_row", measure)
    monkeypatch.setattr(report, "open_model", lambda name: None)
    out = tmp_path / "results" / "fidelity.json"
    for count in (2, 2, 3):
        rows = report.run([("shapes-unet", ARTIFACT)], count, out, tmp_path)
        assert [row["prompts"] for row in rows] == [count]
    assert calls == [2, 3], "the second run had nothing to do, the third asks for more"
    assert [row["profile"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]] == ["w8a8"]
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "## shapes-unet" in page and "| `w8a8` | 8/8 | 0.0 | 0.25 |" in page and "2.0x" in page


def test_identical_pictures_are_told_as_such() -> None:
    page = report.markdown([made_up(ARTIFACT, 4, psnr_db=None, identical=4), made_up(ARTIFACT, 4, identical=1)])
    assert "identical (4 identical)" in page and "0.5 (1 identical)" in page
