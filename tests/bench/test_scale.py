"""The bench of growth: axes name what there is, a whole run of small ones, and slopes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import scale
from bench.cpu_cells import ANCHOR
from bench.subjects import subject


def test_axes_name_what_there_is(tmp_path: Path) -> None:
    for axis in scale.AXES.values():
        assert [subject(name, tmp_path).name for name in axis.points.values()] == list(axis.points.values())
    assert set(scale.FULL.subjects) | set(scale.QUICK.subjects) == set(scale.AXES)
    assert {name.removeprefix("small-") for name in scale.QUICK.subjects} == set(scale.FULL.subjects)


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("local")
def test_a_whole_run(root: Path, results: Path) -> None:
    axes = ("small-batch", "small-steps", "small-frames")
    scale.run(replace(scale.QUICK, subjects=axes, rivals=("torch-fp32", ANCHOR, "sdnq-int8"), root=root, threads=1))
    batch, steps, frames = json.loads((results / "scale.json").read_text(encoding="utf-8"))["axes"]
    for one, sizes in ((batch, [1, 2]), (steps, [6, 25]), (frames, [1, 3])):
        assert [at for at, _ in one["points"]["torch-fp32"]] == [at for at, _ in one["points"][ANCHOR]] == sizes
        assert all(seconds > 0 for points in one["points"].values() for _, seconds in points)
    assert steps["fallbacks"]["6"] > 0 == steps["fallbacks"]["25"]  # tables are of 25 steps
    page = (results / "scale.md").read_text(encoding="utf-8")
    assert "## Rows of a call" in page and f"| {ANCHOR} |" in page and "timesteps that no table knows" in page
    assert (results / "scale.png").stat().st_size > 1000


def test_slopes() -> None:
    axes = [
        {"axis": "layers", "points": {"a": [(2, 1.0), (4, 3.0), (8, 6.0)], "b": [(2, 1.0)]}, "failed": {"c": "why"}}
    ]
    facts = {"machine": {"processor": "p", "date": "d"}, "packages": {}, "threads": 2, "rounds": 1, "warm": 1}
    page = scale.markdown(facts, [axes[0] | {"fallbacks": {}}])
    assert "| a | 1 | 3 | 6 | 1.00 |" in page and "| b | 1 | - | - | - |" in page
    assert "- c is not here, or not at all sizes: why" in page


def test_unknown_axes_are_refused(root: Path) -> None:
    with pytest.raises(KeyError, match="nothing grows by the name wheels; there are pixels, batch"):
        scale.run(replace(scale.QUICK, subjects=("wheels",), root=root))
