"""Evidence that a profile got worse than it was built, picture by picture, with a bound on false alarms.

Pure arithmetic: knows neither Redis nor pictures.

Each comparison is ranked among the build's own pictures, moved by a tolerance: with n of them,
p = (1 + how many are at least as bad) / (n + 1), which is at least uniform while the profile is no worse than its build
beyond the tolerance (conformal p-values; Vovk, Gammerman, Shafer 2005). No distribution is assumed. A bet on small p,

    e(p) = integral over k in 0..1 of k p^(k-1) dk = (1 - p + p ln p) / (p ln(p)^2),

has an expected value of at most 1 then (Vovk and Wang 2021), and the detector R <- (1 + R) e (Shiryaev 1963, Roberts
1966; as an e-detector, Shin, Ramdas and Rinaldo 2024) of at most T after T comparisons, so

    P(R reaches c within T comparisons) <= T / c,

whenever one looks. Damage that comes late is found as fast as damage that was there from the start.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from jobs.spread import Measured, Setting, Spread

FAILED_AT = 1e6
"""A healthy profile is judged failed within T comparisons with a probability of at most 4 T / FAILED_AT: there are four
detectors."""

WATCHED_AT = 1e3
CEILING = 1e12
"""Detectors do not grow beyond: a number that has no end cannot be stored."""

CALL_TOLERANCE = 0.2
"""Calls' errors may be so much greater than at build time, in the mean over steps, as a natural logarithm: 22%. Users'
prompts are not the build's."""

WORST_TOLERANCE = 1.0
"""One step's error may exceed the usual by so many more of its standard deviations."""

PICTURE_TOLERANCE_DB = 2.0
FAR_TOLERANCE = math.log(3)
"""Of calls' errors at other sizes or steps than the build's, where nothing else is compared."""

BUILD_RATE = 0.01
"""Share of what a healthy build measured, at most, that exceeds its tolerance when it is measured again."""

ASSUMED_DEVIATION_DB = 6.0
"""Of pictures' PSNR about its mean, for artifacts whose build kept the mean alone."""


class Detectors(NamedTuple):
    """Evidence, by what of: calls' mean error, the worst step's, the picture's, and what the build measured, anew."""

    call: float = 0.0
    step: float = 0.0
    picture: float = 0.0
    build: float = 0.0

    @property
    def strongest(self) -> tuple[str, float]:
        """The name and value of the greatest."""
        return max(self._asdict().items(), key=lambda pair: pair[1])

    def after(self, bets: Bets) -> Detectors:
        """Once a comparison has come; what it does not tell of stays."""
        grown = (own if won is None else min(CEILING, (1 + own) * won) for own, won in zip(self, bets, strict=True))
        return Detectors(*grown)


class Bets(NamedTuple):
    """What a comparison multiplies each detector by: 1 at most in expectation while the profile is healthy.

    None where it does not tell.
    """

    call: float | None = None
    step: float | None = None
    picture: float | None = None
    build: float | None = None


def bet(p: float) -> float:
    """e(p), decreasing in p: infinite at 0, 1/2 at 1."""
    log = math.log(p)
    if log > -1e-4:
        return 0.5
    return (1 - p + p * log) / (p * log * log)


def rank(value: float, ascending: Sequence[float], tolerance: float) -> float:
    """The p-value of a value that is bad when great, among a build's."""
    worse = len(ascending) - bisect_left(ascending, value - tolerance)
    return (1 + worse) / (len(ascending) + 1)


def bets(
    measured: Measured,
    setting: Setting,
    spread: Spread | None,
    mean_psnr_db: float | None,
    build_excess: float | None = None,
) -> Bets:
    """A comparison against its profile's build; all None where the build measured nothing.

    At the build's settings it tells of calls, of steps and of the picture; at others of calls alone, with a wide
    tolerance, by the nearest of the build's steps.
    """
    again = None if build_excess is None else build_bet(build_excess)
    if spread is None:
        picture = None if mean_psnr_db is None else bet(_by_mean(measured.psnr_db, mean_psnr_db))
        return Bets(picture=picture, build=again)
    if setting != spread.setting or len(measured.call_errors) != len(spread.call_log_error):
        excesses = spread.excesses(resampled(measured.call_errors, len(spread.call_log_error)))
        return Bets(call=bet(rank(statistics.fmean(excesses), spread.call_mean, FAR_TOLERANCE)), build=again)
    excesses = spread.excesses(measured.call_errors)
    losses = [-value for value in reversed(spread.psnr_db)]
    return Bets(
        call=bet(rank(statistics.fmean(excesses), spread.call_mean, CALL_TOLERANCE)),
        step=bet(rank(spread.worst(excesses), spread.call_worst, WORST_TOLERANCE)),
        picture=bet(rank(-measured.psnr_db, losses, PICTURE_TOLERANCE_DB)),
        build=again,
    )


def build_bet(excess: float) -> float:
    """Half of the stake on each outcome: 50 to 1 where a tolerance is exceeded, at BUILD_RATE."""
    return 0.5 / BUILD_RATE if excess > 1 else 0.5 / (1 - BUILD_RATE)


def resampled(values: Sequence[float], count: int) -> list[float]:
    """`count` of the values, at the nearest shares of the way."""
    last = max(1, count - 1)
    return [values[round(index / last * (len(values) - 1))] for index in range(count)]


def _by_mean(psnr_db: float, mean: float) -> float:
    """Of a normal distribution about the build's mean, the tolerance taken off."""
    above = (psnr_db - (mean - PICTURE_TOLERANCE_DB)) / ASSUMED_DEVIATION_DB
    return max(1e-3, statistics.NormalDist().cdf(above))
