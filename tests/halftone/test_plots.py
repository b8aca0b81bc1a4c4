"""Plots are PNG files that show what they were given, whatever the prompts are written in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halftone.evaluation_files import LETTERS
from halftone.plots import Picture, plot_guidance, plot_samples, plot_temporal, plot_trajectory

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(path: Path) -> Picture:
    return np.array(Image.open(path).convert("RGB"))


def plain(colour: tuple[int, int, int]) -> Picture:
    return np.full((4, 4, 3), colour, np.uint8)


def share(path: Path, colour: tuple[int, int, int]) -> float:
    return float((pixels(path) == colour).all(axis=-1).mean())


def test_a_grid_shows_every_picture(tmp_path: Path) -> None:
    rows = {"float": [plain(RED)] * 3, "w4": [plain(RED), plain(BLUE), plain(RED)]}
    plot_samples(tmp_path / "a.png", rows, ["one", "two", "three"])
    assert share(tmp_path / "a.png", RED) == pytest.approx(5 * share(tmp_path / "a.png", BLUE), rel=0.02)
    assert share(tmp_path / "a.png", RED) > 0.5


def test_captions_may_be_anything(tmp_path: Path) -> None:
    captions = ["$x_", "赤い円", "word " * 200]
    plot_samples(tmp_path / "a.png", {"float": [plain(RED)] * 3}, captions)
    height, width = pixels(tmp_path / "a.png").shape[:2]
    assert height < width, "a long prompt is cut"


def test_curves_follow_their_values(tmp_path: Path) -> None:
    def middle(values: list[float]) -> float:
        plot_trajectory(tmp_path / "a.png", {"w4": values, "w8": [1.0] * 9})
        blue = (pixels(tmp_path / "a.png") == (0x1F, 0x6F, 0xB4)).all(axis=-1)
        return float(np.argwhere(blue)[:, 0].mean())

    assert middle([0.2] * 9) > middle([0.8] * 9) + 20, "further up"


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        series = {f"profile {i}": [0.9 + 0.01 * i, 1.0] for i in range(9)}
        plot_temporal(tmp_path / name, series, series, {"profile 0": [0.5]})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len({tuple(pixel) for pixel in pixels(tmp_path / "a.png").reshape(-1, 3)}) > 50


def test_a_plan_is_bars_as_high_as_errors_in_the_colour_of_what_runs(tmp_path: Path) -> None:
    def bars(letters: str, deviations: list[float], colour: tuple[int, int, int]) -> float:
        plot_guidance(tmp_path / "a.png", {"w4-cfg": (letters, deviations)}, LETTERS)
        return share(tmp_path / "a.png", colour)

    both, reuse = (0x1F, 0x6F, 0xB4), (0x2F, 0x8F, 0x5B)
    assert bars("BRRB", [0.0, 0.02, 0.02, 0.0], reuse) > 20 * bars("BRRB", [0.0, 0.02, 0.02, 0.0], both)
    assert bars("BRRB", [0.0, 0.02, 0.02, 0.0], reuse) > 1.8 * bars("BRRB", [0.0, 0.02, 0.001, 0.0], reuse)
    plans = {"one": ("BRN", [0.0, 0.1, 0.2]), "other": ("BSN", [0.0, 0.0, 0.0])}
    plot_guidance(tmp_path / "b.png", plans, LETTERS)
    assert pixels(tmp_path / "b.png").shape[0] > 1.3 * pixels(tmp_path / "a.png").shape[0]
