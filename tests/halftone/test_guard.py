"""`halftone guard show`: what was measured, what was not, and verdicts of older builds, as cells of a table."""

from __future__ import annotations

from halftone.commands.guard import COLUMNS, row
from halftone.views import GuardBuild, GuardCardView, GuardInterval


def cells(**facts: object) -> dict[str, str]:
    plain = {"model": "m", "profile": "p", "verdict": "watch", "reason": "new", "comparisons": 3}
    return dict(zip(COLUMNS, row(GuardCardView.model_validate(plain | facts)), strict=True))


def test_what_was_measured_is_told_with_its_bounds() -> None:
    found = cells(psnr_db=GuardInterval(mean=41.26, low=40.0, high=42.5), build=GuardBuild(psnr_db=43.1, pictures=9))
    assert (found["PSNR dB"], found["at build"], found["comparisons"]) == ("41.3 (40.0 to 42.5)", "43.1", "3")
    assert cells(psnr_db=GuardInterval(mean=41.26))["PSNR dB"] == "41.3"


def test_what_was_not_measured_is_a_dash() -> None:
    assert (cells()["PSNR dB"], cells()["at build"], cells(build=GuardBuild())["at build"]) == ("-", "-", "-")


def test_a_verdict_on_an_older_build_says_so() -> None:
    assert cells(current=False)["verdict"] == "watch, of an older build"
