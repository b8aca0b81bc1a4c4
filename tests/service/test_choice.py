"""Profiles by promise and by verdict: the fastest that keeps it, the nearest where none does, the next safer one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.errors import InvalidRequest, ProfileFailed, PromiseUnmet
from jobs.guard_record import GuardRecord, Pictures, Verdict, empty
from jobs.job import Costs
from jobs.profile import Defaults, Fidelity, GuidanceCard, Limits, ModelCard, ProfileCard
from jobs.request import GenerationRequest, ImageParameters, ImageRequest
from jobs.spread import Measured, Setting, setting_of, spread_of
from service.choice import choose, expected_seconds, guarded, notice_of, promises
from service.costs import CostBook

SETTING = Setting(64, 64, 25, 3.0)


def profile(name: str, psnr_db: float, seconds: float | None, weights: int, pictures: int = 128) -> ProfileCard:
    """A profile whose pictures lie from 5 dB under to 5 over a mean."""
    spread = None
    if pictures:
        step = 10 / (pictures - 1)
        measured = [Measured(psnr_db - 5 + step * number, 0.01, (0.01,)) for number in range(pictures)]
        spread = spread_of(measured, SETTING)
    fidelity = Fidelity(prompts=128, psnr_db=psnr_db, ssim=1, seconds=seconds, float_seconds=1.0, spread=spread)
    return ProfileCard(
        name=name, model="m", backend="openvino", recipe=name, weight_bits=8, activation_bits=8, weights_bytes=weights,
        float_weights_bytes=400, fidelity=fidelity, build=f"build of {name}",
    )  # fmt: skip


FLOAT = ProfileCard(
    name="float", model="m", backend="torch", recipe="float", weight_bits=32, activation_bits=32, weights_bytes=400,
    float_weights_bytes=400,
)  # fmt: skip
MODEL = ModelCard(
    id="m",
    pipeline="StableDiffusionPipeline",
    defaults=Defaults(width=64, height=64, num_inference_steps=25, guidance_scale=3.0),
    limits=Limits(min_side=8, max_side=64, multiple_of=8, max_pixels=4096),
    profiles=(
        FLOAT,
        profile("exact", 60, 0.8, 200),
        profile("good", 55, 0.4, 100),
        profile("rough", 40, 0.2, 50),
        profile("old", 58, 0.1, 40, pictures=0),
    ),
)
REQUEST = ImageRequest(
    model="m", profile="float", prompt="a", width=64, height=64, num_inference_steps=25, guidance_scale=3.0, seed=1
)


def unknown(request: GenerationRequest) -> float | None:
    return None


def ask(**fields: Any) -> ImageParameters:
    return ImageParameters.model_validate({"prompt": "a", "profile": "auto"} | fields)


def chosen(
    records: dict[tuple[str, str], GuardRecord] | None = None, request: ImageRequest = REQUEST, **wanted: Any
) -> str:
    return choose(ask(**wanted), request, MODEL, records or {}, unknown, 0.95).profile


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ({"quality": {"min_psnr_db": 30}}, "rough"),
        ({"quality": {"min_psnr_db": 36}}, "good"),
        ({"quality": {"min_psnr_db": 54.9}}, "exact"),
        ({"quality": {"min_psnr_db": 70}}, "float"),
        ({"quality": {"min_psnr_db": 30}, "max_memory_bytes": 60}, "rough"),
        ({"deadline_seconds": 0.5}, "good"),
        ({"deadline_seconds": 5.0}, "float"),
        ({"max_memory_bytes": 150}, "good"),
    ],
)
def test_the_fastest_that_keeps_quality_or_else_the_nearest_to_float(wanted: dict[str, Any], name: str) -> None:
    assert chosen(**wanted) == name


def test_a_guidance_plan_makes_nothing_faster_at_settings_that_it_does_not_serve() -> None:
    plan = GuidanceCard(saving=0.4, steps="B" * 25, guidance=(2.0, 4.0), calibrated_guidance=3.0)
    planned = profile("planned", 55, 0.3, 100).model_copy(update={"guidance": plan})
    model = MODEL.model_copy(update={"profiles": (*MODEL.profiles, planned)})
    wanted = ask(quality={"min_psnr_db": 36})

    def picked(**settings: Any) -> str:
        request = REQUEST.model_copy(update=settings)
        seen = (Pictures(setting=setting_of(request), psnr_db=(55.0,) * 60),)
        told = {
            (record := empty("m", name, f"build of {name}", 0.0)).key: record.model_copy(update={"pictures": seen})
            for name in ("good", "planned")
        }
        return choose(wanted, request, model, told, unknown, 0.95).profile

    assert picked() == "planned"
    assert picked(num_inference_steps=10) == "good"
    assert picked(guidance_scale=5.0) == "good"
    elsewhere = REQUEST.model_copy(update={"guidance_scale": 5.0})
    assert expected_seconds(planned, elsewhere, model, unknown) == pytest.approx(0.3 / 0.6)


def test_the_answer_names_the_choice_and_its_evidence() -> None:
    choice = choose(ask(quality={"min_psnr_db": 36}), REQUEST, MODEL, {}, unknown, 0.95)
    assert (choice.psnr_db, choice.seconds, choice.weights_bytes) == (50.16, 0.4, 100)
    assert choice.evidence == "50.2 dB by its build's pictures"
    notice = notice_of(choice)
    assert notice.code == "profile_chosen"
    assert notice.message.startswith("auto chose good: at least 50.16 dB in 95%, about 0.4 s, 100 bytes")


@pytest.mark.parametrize(
    ("wanted", "nearest", "misses"),
    [
        ({"quality": {"min_psnr_db": 56}, "deadline_seconds": 0.7}, "good", "quality"),
        ({"deadline_seconds": 0.01}, "old", "deadline_seconds"),
        ({"quality": {"min_psnr_db": 36}, "max_memory_bytes": 49}, "rough", "quality, max_memory_bytes"),
    ],
)
def test_where_none_fits_the_nearest_is_named(wanted: dict[str, Any], nearest: str, misses: str) -> None:
    with pytest.raises(PromiseUnmet, match="no profile of m keeps") as caught:
        chosen(**wanted)
    assert f"the nearest is {nearest} (" in caught.value.message
    assert caught.value.message.endswith(f"misses {misses}")


def record_of(name: str, verdict: Verdict = Verdict.HEALTHY, seen: tuple[float, ...] = ()) -> dict[Any, GuardRecord]:
    record = empty("m", name, f"build of {name}", 0.0)
    pictures = (Pictures(setting=SETTING, psnr_db=seen),) if seen else ()
    return {record.key: record.model_copy(update={"verdict": verdict, "pictures": pictures, "comparisons": len(seen)})}


def test_traffic_can_take_a_promise_back_and_make_one() -> None:
    wanted: dict[str, Any] = {"quality": {"min_psnr_db": 36}}
    assert chosen(record_of("good", seen=(30.0,) * 10 + (60.0,) * 10), **wanted) == "exact"
    assert chosen(record_of("good", seen=(60.0,) * 30), **wanted) == "good"
    assert chosen(record_of("good", Verdict.WATCH), **wanted) == "exact"
    elsewhere = REQUEST.model_copy(update={"guidance_scale": 5.0})
    assert chosen(request=elsewhere, **wanted) == "float"
    there = SETTING._replace(guidance_scale=5.0)
    record = empty("m", "good", "build of good", 0.0)
    told = record.model_copy(update={"pictures": (Pictures(setting=there, psnr_db=(44.0,) * 60),)})
    assert chosen({record.key: told}, request=elsewhere, **wanted) == "good"


def test_a_verdict_on_another_build_does_not_count() -> None:
    [(key, record)] = record_of("good", Verdict.FAILED).items()
    stale = {key: record.model_copy(update={"artifact": "another"})}
    assert chosen(stale, quality={"min_psnr_db": 36}) == "good"
    assert guarded(MODEL.profiles[2], MODEL, stale, "refuse") == (MODEL.profiles[2], None)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"profile": "auto"}, "auto needs to know what is wanted"),
        ({"profile": "good", "deadline_seconds": 1.0}, "deadline_seconds: goes with profile auto"),
    ],
)
def test_promises_go_with_auto(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        promises(ask(**fields))
    assert promises(ImageParameters.model_validate({"prompt": "a", "max_memory_bytes": 5}))
    assert not promises(ImageParameters.model_validate({"prompt": "a"}))


def test_costs_are_the_jobs_own_then_anothers_by_ratio_then_the_builds() -> None:
    good, book = MODEL.profiles[2], CostBook()
    twice = REQUEST.model_copy(update={"num_inference_steps": 50, "n": 2})
    assert expected_seconds(good, twice, MODEL, book.estimate) == pytest.approx(4 * 0.4)
    book.observe(REQUEST, Costs(denoise_seconds=3.0))
    assert expected_seconds(good, REQUEST, MODEL, book.estimate) == pytest.approx(3.0 * 0.4 / 1.0)
    book.observe(REQUEST.model_copy(update={"profile": "good"}), Costs(denoise_seconds=0.9))
    assert expected_seconds(good, REQUEST, MODEL, book.estimate) == pytest.approx(0.9)


def test_what_a_failed_profile_gets_is_the_operators_choice() -> None:
    good, records = MODEL.profiles[2], record_of("good", Verdict.FAILED)
    served, notice = guarded(good, MODEL, records, "report")
    assert served is good and notice is not None and notice.code == "profile_failed"
    with pytest.raises(ProfileFailed, match="failed the quality guard"):
        guarded(good, MODEL, records, "refuse")
    served, notice = guarded(good, MODEL, records, "replace")
    assert served.name == "old" and notice is not None and notice.code == "profile_replaced"
    assert "old served instead" in notice.message
    both = records | record_of("old", Verdict.FAILED) | record_of("exact", Verdict.WATCH)
    assert guarded(good, MODEL, both, "replace")[0].name == "float"


def test_pictures_identical_with_floats_are_as_safe_as_float_and_smaller() -> None:
    good, records = MODEL.profiles[2], record_of("good", Verdict.FAILED)
    same = profile("same", 60, 0.8, 300).model_copy(update={"fidelity": Fidelity(prompts=9, psnr_db=None, ssim=1)})
    model = MODEL.model_copy(update={"profiles": (FLOAT, good, same)})
    assert guarded(good, model, records, "replace")[0].name == "same"


def test_auto_never_chooses_a_failed_profile_whatever_was_promised() -> None:
    wanted: dict[str, Any] = {"max_memory_bytes": 45}
    assert chosen(**wanted) == "old"
    with pytest.raises(PromiseUnmet, match="the nearest is rough") as caught:
        chosen(record_of("old", Verdict.FAILED), **wanted)
    assert caught.value.message.endswith("misses max_memory_bytes")
    with pytest.raises(PromiseUnmet, match=r"the guard's verdict is failed.* misses profile"):
        only = MODEL.model_copy(update={"profiles": (MODEL.profiles[4],)})
        choose(ask(**wanted), REQUEST, only, record_of("old", Verdict.FAILED), unknown, 0.95)


def test_jobs_that_ran_in_company_do_not_make_their_profile_slow() -> None:
    book = CostBook()
    for name, seconds in (("rough", 9.0), ("float", 2.0)):
        book.observe(REQUEST.model_copy(update={"profile": name}), Costs(denoise_seconds=seconds))
    wanted = ask(quality={"min_psnr_db": 30})
    assert choose(wanted, REQUEST, MODEL, {}, book.estimate, 0.95).profile == "rough"
    hurried = ask(quality={"min_psnr_db": 30}, deadline_seconds=1.0)
    assert choose(hurried, REQUEST, MODEL, {}, book.estimate, 0.95).profile == "good"


def test_a_choice_of_which_nothing_is_known_does_not_say_that_it_is_as_float() -> None:
    choice = choose(ask(max_memory_bytes=45), REQUEST, MODEL, {}, unknown, 0.95)
    assert (choice.profile, choice.psnr_db) == ("old", None)
    assert notice_of(choice).message.startswith("auto chose old: unknown fidelity, ")
    exact = choose(ask(deadline_seconds=5.0), REQUEST, MODEL, {}, unknown, 0.95)
    assert notice_of(exact).message.startswith("auto chose float: float itself, ")


@pytest.mark.parametrize("estimate", [unknown, lambda request: 0.25])
def test_float_is_always_there(estimate: Callable[[GenerationRequest], float | None]) -> None:
    alone = MODEL.model_copy(update={"profiles": (FLOAT,)})
    assert choose(ask(quality={"min_psnr_db": 99}), REQUEST, alone, {}, estimate, 0.95).profile == "float"
