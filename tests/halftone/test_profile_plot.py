"""Pictures of profiles: every point is drawn where it stands, the frontier in colour, as PNG and as SVG with names."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from halftone.plots import Picture
from halftone.profile_plot import BEST, dots, plot_profiles, plot_search
from jobs.pareto import Place
from pipelines.tune_order import Round, Spot, Story

FOUND = [
    Place("float", math.inf, 0.2, 32_000_000),
    Place("w8a8", 54.0, 0.08, 8_300_000),
    Place("w4a8", 48.0, 0.09, 4_700_000),
    Place("w4a8-slow", 47.0, None, 4_700_000),
]


def share(path: Path, colour: str) -> float:
    wanted = tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return float((pixels(path) == wanted).all(axis=-1).mean())


def pixels(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def test_what_is_beaten_and_what_is_not_measured() -> None:
    assert [(dot.name, dot.best) for dot in dots(FOUND, "seconds")] == [
        ("float", True),
        ("w8a8", True),
        ("w4a8", False),
    ]
    by_bytes = {dot.name: dot for dot in dots(FOUND, "bytes")}
    assert by_bytes["w4a8"] == (4.7, 48.0, "w4a8", True)
    assert by_bytes["float"].y is None and not by_bytes["w4a8-slow"].best


def test_the_picture_has_a_row_for_each_model(tmp_path: Path) -> None:
    plot_profiles(tmp_path / "one.png", {"a": FOUND})
    plot_profiles(tmp_path / "two.png", {"a": FOUND, "b": FOUND[:2]})
    one, two = (pixels(tmp_path / name).shape for name in ("one.png", "two.png"))
    assert one[1] == two[1] and two[0] > 1.8 * one[0]
    assert share(tmp_path / "one.png", BEST) > 1e-4


def test_svg_is_told_by_the_name_and_the_same_twice(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plot_profiles(tmp_path / name, {"m": FOUND})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_names_keep_apart(tmp_path: Path) -> None:
    crowd = [Place(f"profile-{i}", 50.0 + 0.05 * i, 0.1 + 0.0005 * i, 8_000_000 + 9000 * i) for i in range(6)]
    plot_profiles(tmp_path / "crowd.png", {"m": crowd})
    assert (tmp_path / "crowd.png").stat().st_size > 10_000


def test_a_search_has_room_for_all_that_it_expected_and_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("halftone.profile_plot.save", lambda figure, path: drawn.append(figure))
    spots = tuple(Spot(psnr_db=25 + 6 * i, bytes=1e6 * (2 + i), seconds=0.1 + 0.03 * i) for i in range(7))
    built = Round(expected_psnr_db=36, psnr_db=20, bytes=9_100_000, expected_bytes=4e6, expected_seconds=0.1)
    story = Story(objective="memory", min_psnr_db=35, rounds=(built,), frontier=spots)
    plot_search(tmp_path / "a.png", "m", story, [FOUND[0], Place("tuned", 36.0, 0.2, 4_500_000)], "tuned")
    (figure,) = drawn
    for axes in figure.axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        curves = [line.get_xydata() for line in axes.lines if line.get_label() == "expected"]
        marks = [marks.get_offsets() for marks in axes.collections]
        assert len(curves) == 1 and len(marks) == (2 if "MB" in axes.get_xlabel() else 1)
        for x, y in np.concatenate([np.asarray(some) for some in (*curves, *marks)]):
            assert left <= x <= right and low <= y <= high
