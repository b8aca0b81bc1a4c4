"""Bounds for one picture: they hold for the stated share of pictures, with the stated confidence."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from pydantic import ValidationError

from jobs.promise import Quality, build_bound, contradicted_above, lower_bound
from jobs.spread import Measured, Point, Setting, Spread, spread_of

SETTING = Setting(64, 64, 25, 3.0)


@pytest.mark.parametrize(("count", "place"), [(58, None), (59, 1), (93, 2), (128, 3), (256, 7)])
def test_the_bound_is_wilks_order_statistic(count: int, place: int | None) -> None:
    values = [float(value) for value in range(1, count + 1)]
    assert lower_bound(values, 0.95) == place


def test_the_bound_holds_with_the_confidence() -> None:
    """Of 2,000 builds at most 5% (and chance) have a bound under which more than 5% of pictures lie."""
    rng, truth, broken = random.Random(1), NormalDist(50, 5), 0
    for _ in range(2000):
        bound = lower_bound(sorted(rng.gauss(50, 5) for _ in range(128)), 0.95)
        assert bound is not None
        broken += truth.cdf(bound) > 0.05
    assert broken < 0.05 * 2000 + 3 * math.sqrt(2000 * 0.05 * 0.95)
    assert broken > 20, "a bound that never errs says too little"


def test_few_pictures_can_contradict_and_not_promise() -> None:
    assert contradicted_above([], 0.95) == math.inf
    assert contradicted_above([float(value) for value in range(20)], 0.95) == 3.0
    assert lower_bound([1.0] * 20, 0.95) is None


def spread_with(points: tuple[Point, ...]) -> Spread:
    pictures = [Measured(40.0 + number / 10, 0.01, (0.01,)) for number in range(128)]
    return spread_of(pictures, SETTING).model_copy(update={"points": points})


def point(steps: int, psnr_db: float, count: int = 64, guidance: float = 3.0) -> Point:
    return Point(
        width=64, height=64, num_inference_steps=steps, guidance_scale=guidance, psnr_db=(psnr_db,) * count
    )  # fmt: skip


def test_between_measured_steps_the_lower_bound_holds_and_beyond_none() -> None:
    spread = spread_with((point(10, 30.0), point(50, 50.0), point(25, 20.0, guidance=6.0)))
    own = build_bound(spread, SETTING, 0.95)
    assert own == pytest.approx(40.2)
    bounds = [build_bound(spread, SETTING._replace(num_inference_steps=steps), 0.95) for steps in (10, 12, 30, 50)]
    assert bounds == [30.0, 30.0, own, 50.0]
    for other in (
        SETTING._replace(num_inference_steps=8),
        SETTING._replace(num_inference_steps=51),
        SETTING._replace(width=128),
        SETTING._replace(guidance_scale=4.0),
    ):
        assert build_bound(spread, other, 0.95) is None
    assert build_bound(None, SETTING, 0.95) is None
    assert (
        build_bound(spread_with((point(10, 30.0, count=20),)), SETTING._replace(num_inference_steps=12), 0.95) is None
    )


@pytest.mark.parametrize("value", [4.9, 101, math.inf, math.nan, True, "30"])
def test_promises_are_bounded(value: object) -> None:
    with pytest.raises(ValidationError):
        Quality.model_validate({"min_psnr_db": value})
