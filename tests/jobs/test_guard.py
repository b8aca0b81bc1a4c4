"""The guard's records on a real server: counted once, by several at once, judged, latched, lifted, told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from jobs.errors import NotFound
from jobs.evidence import Bets
from jobs.guard import GuardLog
from jobs.guard_record import (
    KEPT_PICTURES,
    Comparison,
    Estimate,
    GuardRecord,
    Verdict,
    after,
    comparison,
    empty,
)
from jobs.profile import Fidelity, ProfileCard
from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.spread import Measured, Setting, spread_of

pytestmark = pytest.mark.anyio
SETTING = Setting(64, 64, 3, 3.0)
FINE, BAD = Bets(call=0.6, step=0.6, picture=0.6), Bets(call=9.0, step=2.0, picture=0.6)


@pytest.fixture
def guard(redis: Redis, settings: Settings) -> GuardLog:
    return JobQueue(redis, settings).guard


def seen(name: str, bets: Bets | None = FINE, **changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "id": name, "model": "m", "profile": "w8a8", "artifact": "one", "psnr_db": 50.0, "latent_error": 0.01,
        "call_errors": (0.01, 0.02, 0.01), "bets": bets, "elsewhere": False, "seconds": 0.5,
    }  # fmt: skip
    return Comparison(**(SETTING._asdict() | fields | changes))


async def test_comparisons_of_several_workers_all_count_and_each_once(guard: GuardLog) -> None:
    ids = [f"job-{number}" for number in range(12)]
    await asyncio.gather(*(guard.record(seen(name)) for name in (*ids, *ids)))
    [record] = await guard.records()
    assert (record.comparisons, record.seconds, record.verdict) == (12, 6.0, Verdict.HEALTHY)
    assert sum(record.psnr_histogram) == sum(record.latent_histogram) == 12
    assert record.pictures_at(SETTING) == (50.0,) * 12
    assert record.psnr_db.mean == 50 and record.psnr_db.bounds == (50.0, 50.0)
    assert GuardRecord.model_validate_json(record.model_dump_json()) == record


async def test_a_failed_profile_stays_failed_until_it_is_lifted(guard: GuardLog) -> None:
    verdicts = [(await guard.record(seen(f"bad-{number}", BAD))).verdict for number in range(8)]
    assert verdicts[0] is Verdict.HEALTHY and Verdict.WATCH in verdicts and verdicts[-1] is Verdict.FAILED
    record = await guard.record(seen("good"))
    assert record.verdict is Verdict.FAILED
    assert "farther from float's than when it was built" in record.reason and "probability" in record.reason
    lifted = await guard.lift("m", "w8a8")
    assert (lifted.verdict, lifted.lifts, lifted.comparisons) == (Verdict.HEALTHY, 1, 9)
    assert lifted.pictures == () and lifted.detectors.strongest[1] == 0
    told = [(event.before.value, event.verdict.value) for event in reversed(await guard.events())]
    assert told == [("healthy", "watch"), ("watch", "failed"), ("failed", "healthy")]


async def test_each_change_of_a_verdict_is_logged_once_however_many_try(
    guard: GuardLog, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="jobs.guard"):
        await asyncio.gather(*(guard.record(seen(f"bad-{number}", BAD)) for number in range(12)))
    assert len(caplog.messages) == len(await guard.events()) == 2


async def test_another_build_of_the_profile_starts_anew(guard: GuardLog) -> None:
    for number in range(8):
        await guard.record(seen(f"bad-{number}", BAD))
    record = await guard.record(seen("bad-0", artifact="two"))
    assert (record.verdict, record.comparisons, record.artifact) == (Verdict.HEALTHY, 1, "two")
    assert (await guard.events())[0].verdict is Verdict.HEALTHY


async def test_nothing_to_lift(guard: GuardLog) -> None:
    with pytest.raises(NotFound, match="no verdict to lift"):
        await guard.lift("m", "w8a8")


async def test_a_build_without_measurements_is_watched_and_never_failed(guard: GuardLog) -> None:
    for number in range(30):
        record = await guard.record(seen(f"job-{number}", bets=None, psnr_db=5.0))
    assert record.verdict is Verdict.WATCH and "measured no fidelity" in record.reason


def test_memory_is_bounded() -> None:
    record = empty("m", "w8a8", "one", 0.0)
    for number in range(600):
        record = after(record, seen(f"job-{number}", guidance_scale=float(number % 20)), 1.0)
    assert len(record.pictures) == 12 and len(record.seen) == 64
    assert len(record.model_dump_json()) < 64 * 1024
    for number in range(600):
        record = after(record, seen(f"again-{number}"), 1.0)
    assert len(record.pictures_at(SETTING)) == KEPT_PICTURES


def test_an_estimate_is_a_plain_mean_first_and_then_forgets() -> None:
    estimate = Estimate()
    assert estimate.bounds is None
    for value in (1.0, 2.0, 3.0, 4.0):
        estimate = estimate.after(value)
    assert estimate.mean == pytest.approx(2.5)
    assert estimate.variance == pytest.approx(1.25)
    low, high = estimate.bounds or (0, 0)
    assert low == pytest.approx(2.5 - 1.96 * (1.25 / 3) ** 0.5) and high == pytest.approx(5 - low)
    for _ in range(1000):
        estimate = estimate.after(10.0)
    assert estimate.mean == pytest.approx(10) and estimate.variance == pytest.approx(0, abs=1e-6)


def test_a_comparison_is_judged_by_the_cards_build() -> None:
    pictures = [Measured(40.0 + number, 0.01, (0.01, 0.02, 0.01)) for number in range(20)]
    card = card_of(Fidelity(prompts=20, psnr_db=50, ssim=1, spread=spread_of(pictures, SETTING)))
    assert "spread" not in card.model_dump()["fidelity"], "a card as answers show it has no lists of pictures"
    told = comparison(card, SETTING, "job", SETTING, pictures[3], None, 0.1)
    assert told.bets is not None and told.bets.call is not None and told.artifact == "one" and not told.elsewhere
    far = comparison(card, SETTING, "job", SETTING._replace(width=128), pictures[3], 2.0, 0.1)
    assert far.elsewhere and far.bets is not None and far.bets.picture is None and far.bets.build == 50


def test_a_builds_mean_tells_of_the_models_defaults_alone() -> None:
    card, bad = card_of(Fidelity(prompts=20, psnr_db=50, ssim=1)), Measured(20.0, 0.1, (0.1, 0.1, 0.1))
    record, far = empty("m", "w8a8", "one", 0.0), SETTING._replace(guidance_scale=15.0)
    for number in range(40):
        one = comparison(card, SETTING, f"far-{number}", far, bad, None, 0.1)
        assert one.elsewhere and one.bets == Bets()
        record = after(record, one, 1.0)
    assert (record.verdict, record.comparisons, record.elsewhere) == (Verdict.HEALTHY, 40, 40)
    assert record.reason == "nothing was compared with its build yet"
    for number in range(8):
        record = after(record, comparison(card, SETTING, f"near-{number}", SETTING, bad, None, 0.1), 2.0)
    assert record.verdict is Verdict.FAILED and record.elsewhere == 40


def card_of(fidelity: Fidelity) -> ProfileCard:
    return ProfileCard(
        name="w8a8", model="m", backend="openvino", recipe="w8a8", weight_bits=8, activation_bits=8,
        weights_bytes=1, float_weights_bytes=4, build="one", fidelity=fidelity,
    )  # fmt: skip
