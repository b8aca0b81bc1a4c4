"""Doubled pictures are convolved at the size before, as an artifact says, by the backend that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quant
from quant.backends import polyphase
from tests.quant.temporal.test_maintain import make_call, opened, recipe, saved


@pytest.mark.parametrize(("way", "most"), [("direct", 0), ("polyphase", 1)])
def test_it_is_done_where_the_artifact_says_so(
    way: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    rewrite = polyphase.rewrite

    def counted(model: Any) -> int:
        counts.append(rewrite(model))
        return counts[-1]

    monkeypatch.setattr(polyphase, "WORTH", 1)
    monkeypatch.setattr(polyphase, "rewrite", counted)
    manifest = saved(recipe("cache").model_copy(update={"upsampling": way}), tmp_path / "made")
    assert manifest.upsampling == quant.read_manifest(tmp_path / "made").upsampling == way
    call = make_call([901.0, 301.0, 1.0])
    outputs = {
        name: opened(tmp_path / "made", manifest, name, tmp_path / "cache").run(call)
        for name in ("openvino", "reference")
    }
    assert sum(counts) == most
    assert quant.relative_error(outputs["openvino"], outputs["reference"]) < 0.03


def test_an_artifact_of_before_says_directly(tmp_path: Path) -> None:
    manifest = saved(recipe("cache"), tmp_path / "made")
    told = manifest.model_dump(mode="json")
    del told["upsampling"], told["recipe"]["upsampling"]
    assert quant.Manifest.model_validate(told).upsampling == "direct"
