"""The bench of switching: a worker's own residents over the bench's artifacts, and verdicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import switch


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("local")
def test_a_whole_run(root: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.hub.MEASURE_SECONDS", 0.0)  # batches of more rows are compiled for nobody here
    switch.run(replace(switch.QUICK, root=root, threads=1))
    (one,) = json.loads((results / "switch.json").read_text(encoding="utf-8"))["subjects"]
    own, moved = one["resident"], one["evicting"]
    assert own["calls"] == 8 and own["picture_seconds"] > own["lease_seconds"] > 0
    assert min(own["same_seconds"], own["switched_seconds"]) > 0
    assert own["share"] == pytest.approx(own["cost_seconds"] / own["picture_seconds"])
    assert moved["budget"] < moved["both"] and moved["looks"] > 10
    assert 0 < moved["accounted"] <= moved["budget"]
    assert moved["accounted"] <= moved["held"] <= moved["both"]
    assert all(later >= loaded > 0 for loaded, later in own["weights"].values())
    kinds = [move.partition(" ")[0] for move in moved["moves"]]
    assert kinds.count("arrival") == 2 * switch.QUICK.rounds and kinds.count("departure") == 2 * switch.QUICK.rounds - 1
    page = (results / "switch.md").read_text(encoding="utf-8")
    within = "reached" if moved["held"] <= moved["budget"] else "not reached"
    assert "## small-unet@8" in page and f"(aim: within the budget): {within}." in page
    assert (results / "switch.png").stat().st_size > 1000


def test_layers_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="linear-64x32x48 is a layer: profiles are of models"):
        switch.measured("linear-64x32x48", replace(switch.QUICK, root=root))


def test_other_than_two_of_ours_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="switching takes two of tfmq-w8a8, trdq-w8a8, tfmq-w4a8, not torch-fp32"):
        switch.measured("small-unet@8", replace(switch.QUICK, rivals=("torch-fp32",), root=root))


def test_verdicts() -> None:
    own: dict[str, Any] = {"calls": 100, "same_seconds": 0.5, "switched_seconds": 0.7, "lease_seconds": 1e-5}
    own |= {"picture_seconds": 14.0, "share": 0.2 / 14, "weights": {"tfmq-w8a8": (10**9, 2 * 10**9)}}
    moved: dict[str, Any] = {"budget": 10**9, "both": 2 * 10**9, "switch_seconds": [4.0], "accounted": 10**9}
    moved |= {"looks": 99, "held": 2 * 10**9, "rss_growth": 10**9}
    facts = {"machine": {"processor": "p", "date": "d"}, "threads": 2, "profiles": switch.FULL.rivals}
    page = switch.markdown(facts, [{"subject": "sd15@32", "resident": own, "evicting": moved}])
    assert "A switch costs 1.429% of a picture of 14.00 s (aim 1%): not reached" in page
    assert "at most 1000 MB were accounted for in 99 looks, and 2000 MB were in memory when a load ended" in page
    assert "(aim: within the budget): not reached" in page
    assert "tfmq-w8a8: weights of 1000 MB when it was loaded" in page and "2000 MB after two pictures" in page
