"""The fidelity report of shipped artifacts: rows are kept while they hold, made anew when not, told in tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import quant
from zoo import report
from zoo.build import ZOO

ARTIFACT = ZOO / "artifacts" / "shapes-unet" / "w8a8"


def made_up(artifact: Path, count: int, **changes: Any) -> report.Row:
    numbers: dict[str, Any] = dict.fromkeys(report.MEASURED, 0.5) | {"ms_ssim_scales": 3, "identical": 0}
    facts = {"model": "shapes-unet", "profile": artifact.name, "backend": "openvino", "prompts": count}
    sizes = {"weight_bits": 8, "activation_bits": 8, "weights_bytes": 10, "float_weights_bytes": 40}
    key = report.key_of(artifact, count)
    return {**facts, **sizes, **numbers, "key": key, "guidance_saving": None, "build": None, **changes}


def test_rows_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(model: object, artifact: Path, count: int, cache: Path, tell: object) -> report.Row:
        calls.append(count)
        return made_up(artifact, count)

    monkeypatch.setattr(report, "measure_row", measure)
    monkeypatch.setattr(report, "open_model", lambda name: None)
    out = tmp_path / "results" / "fidelity.json"
    artifact = Path(shutil.copytree(ARTIFACT, tmp_path / "w8a8"))
    for count, built in ((2, 64), (2, 256), (3, 256)):
        told = {"prompts": built, "psnr_db": 54.0, "ssim": 0.99, "seconds": 1.0, "float_seconds": 2.0}
        quant.set_fidelity(artifact, {**told, "spread": {"psnr_db": [54.0]}})
        rows = report.run([("shapes-unet", artifact)], count, out, tmp_path)
        assert [row["prompts"] for row in rows] == [count]
        assert rows[0]["build"] == told, "as the manifest has it now, without its pictures one by one"
    assert calls == [2, 3], "the second run had nothing to do, the third asks for more"
    assert [row["profile"] for row in json.loads(out.read_text(encoding="utf-8"))["rows"]] == ["w8a8"]
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "## shapes-unet" in page and "| `w8a8` | 8/8 | 0.0 | 0.25 |" in page and "2.0x" in page


def test_identical_pictures_are_told_as_such() -> None:
    page = report.markdown([made_up(ARTIFACT, 4, psnr_db=None, identical=4), made_up(ARTIFACT, 4, identical=1)])
    assert "identical (4 identical)" in page and "0.5 (1 identical)" in page
