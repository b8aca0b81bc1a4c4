"""Admission's policy by itself: what is filled in, what is refused and in which words, what is only noticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jobs.catalog import Catalog
from jobs.errors import (
    DiskFull,
    InvalidRequest,
    NoWorker,
    ProfileFailed,
    Unavailable,
    UnknownModel,
    UnknownProfile,
)
from jobs.guard_record import GuardRecord, Verdict, empty
from jobs.job import Costs
from jobs.records import WorkerInfo
from jobs.request import AnyRequest, CompareParameters, ImageParameters, VideoParameters
from service.admission import Admission
from service.settings import Settings

READY = WorkerInfo(name="w", state="ready", models=("tiny",), profiles={"tiny": ("float",)})


@pytest.fixture
def admission(make_settings: Callable[..., Settings]) -> Admission:
    return build(make_settings(), [READY])


def build(settings: Settings, workers: Sequence[WorkerInfo], full: bool = False) -> Admission:
    async def look() -> Sequence[WorkerInfo]:
        return workers

    def check_floor() -> None:
        if full:
            raise DiskFull("no space", retry_after=60)

    return Admission(settings, Catalog.scan(settings), look, check_floor)


def ask(**fields: Any) -> ImageParameters:
    return ImageParameters.model_validate({"prompt": "a red circle"} | fields)


def test_what_is_left_out_comes_from_the_card(admission: Admission) -> None:
    request = admission.resolve(ask())
    assert (request.model, request.profile, request.width, request.height) == ("tiny", "float", 16, 16)
    assert (request.num_inference_steps, request.guidance_scale, request.notices) == (4, 3.0, ())
    assert admission.resolve(ask(guidance_scale=0.0, seed=0)).guidance_scale == 0.0
    assert len({admission.resolve(ask()).seed for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"width": 72}, "width", "tiny makes 8 to 64 pixels; got 72"),
        ({"height": 12}, "height", "tiny needs a multiple of 8 pixels; got 12"),
        ({"width": 64, "height": 40}, "width", "at most 2048 pixels; 64x40 are 2560"),
        ({"num_inference_steps": 51}, "num_inference_steps", "at most 50; got 51"),
        ({"output_compression": 90}, "output_compression", "png is lossless"),
    ],
)
def test_limits_are_told(admission: Admission, fields: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        admission.resolve(ask(**fields))
    assert caught.value.param == param
    assert text in caught.value.message


def test_unknown_names_list_the_known(admission: Admission) -> None:
    with pytest.raises(UnknownModel, match="tiny"):
        admission.resolve(ask(model="other"))
    with pytest.raises(UnknownProfile, match="float, w8a8"):
        admission.resolve(ask(profile="w4a4"))


def test_surprises_are_noticed(admission: Admission) -> None:
    request = admission.resolve(ask(prompt="A RED circle's dragon", negative_prompt="fog", width=24))
    assert [notice.code for notice in request.notices] == ["unknown_words", "untrained_size"]
    assert "circle's, dragon, fog" in request.notices[0].message


def test_only_a_worker_with_the_profile_will_do(admission: Admission, make_settings: Callable[..., Settings]) -> None:
    assert asyncio.run(admission.admit(ask())).profile == "float"
    with pytest.raises(NoWorker, match="'w8a8'"):
        asyncio.run(admission.admit(ask(profile="w8a8")))
    with pytest.raises(NoWorker, match="no worker is running") as caught:
        asyncio.run(build(make_settings(), []).admit(ask()))
    assert caught.value.retry_after is not None


def test_only_a_worker_of_the_lane_will_do(make_settings: Callable[..., Settings]) -> None:
    profiles = {"tiny": ("float",), "moving": ("float",)}
    worker = READY.model_copy(update={"profiles": profiles, "lanes": ("image",)})
    admission = build(make_settings(), [worker])
    assert asyncio.run(admission.admit(ask())).lane == "image"
    video = VideoParameters(prompt="a red circle")
    with pytest.raises(NoWorker, match="'moving' with profile 'float' and takes from lane 'video'"):
        asyncio.run(admission.admit(video))
    other = READY.model_copy(update={"name": "v", "profiles": profiles, "lanes": ("video",)})
    assert asyncio.run(build(make_settings(), [worker, other]).admit(video)).lane == "video"


def test_a_full_disk_refuses(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(DiskFull):
        asyncio.run(build(make_settings(), [READY], full=True).admit(ask()))


def test_a_job_that_would_take_too_long_is_refused_once_the_pace_is_known(admission: Admission) -> None:
    small, large = ask(), ask(width=32, height=64, num_inference_steps=50, n=4)
    half = asyncio.run(admission.admit(ask(width=32, height=64, num_inference_steps=50, n=2)))
    done = asyncio.run(admission.admit(large))  # nothing is known yet
    request = asyncio.run(admission.admit(small))
    admission.costs.observe(request, Costs(denoise_seconds=100.0))
    assert admission.costs.estimate(done) is None, "a small job says nothing about one 400 times as large"
    for seconds in (500.0, 400.0, 900.0):
        admission.costs.observe(half, Costs(denoise_seconds=seconds))
    assert admission.costs.estimate(done) == pytest.approx(800)
    with pytest.raises(InvalidRequest, match="would take about 800 seconds; at most 600"):
        asyncio.run(admission.admit(large))
    assert asyncio.run(admission.admit(small)).work == request.work


def test_a_comparison_of_videos_may_take_as_long_as_a_video(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(max_job_seconds=10, max_video_seconds=100)
    own, other = (settings.artifacts_dir / model / "w8a8" / "manifest.json" for model in ("tiny", "moving"))
    other.parent.mkdir(parents=True)
    manifest = json.loads(own.read_text(encoding="utf-8")) | {"model": "moving"}
    other.write_text(json.dumps(manifest), encoding="utf-8")
    worker = READY.model_copy(update={"profiles": dict.fromkeys(("tiny", "moving"), ("float", "w8a8"))})
    admission = build(settings, [worker])

    def again(model: str) -> AnyRequest:
        asked = CompareParameters(prompt="a red circle", model=model, seed=1)
        admission.costs.observe(asyncio.run(admission.admit(asked)), Costs(denoise_seconds=50.0))
        return asyncio.run(admission.admit(asked))

    assert again("moving").lane == "video"
    with pytest.raises(InvalidRequest, match="would take about 50 seconds; at most 10 are allowed"):
        again("tiny")


def test_a_burst_costs_one_look_at_the_guard_and_goes_by_that(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission._LOOK_SECONDS", 0.05)
    settings, seen = make_settings(guard_action="refuse"), [list[GuardRecord]()]
    build = Catalog.scan(settings).profile("tiny", "w8a8").build
    failed = empty("tiny", "w8a8", build, 0.0).model_copy(update={"verdict": Verdict.FAILED})

    async def workers() -> Sequence[WorkerInfo]:
        return [READY]

    async def records() -> Sequence[GuardRecord]:
        seen.append(seen[-1])
        await asyncio.sleep(0.01)
        return seen[-1]

    async def burst() -> None:
        admission = Admission(settings, Catalog.scan(settings), workers, lambda: None, records)
        await admission.decide(ask(profile="w8a8"))
        await asyncio.sleep(0.06)
        seen.append([failed])
        every = (admission.decide(ask(profile="w8a8")) for _ in range(20))
        found = await asyncio.gather(*every, return_exceptions=True)
        assert {type(one) for one in found} == {ProfileFailed}, "none goes by what was seen before"
        assert len(seen) == 4, "each look notes itself"
        admission.forget_records()
        with pytest.raises(ProfileFailed):
            await admission.decide(ask(profile="w8a8"))
        assert len(seen) == 5

    asyncio.run(burst())


def test_a_look_in_vain_is_tried_again_at_once(make_settings: Callable[..., Settings]) -> None:
    settings, tries = make_settings(), [1, 0]

    async def workers() -> Sequence[WorkerInfo]:
        if tries.pop():
            return [READY]
        raise Unavailable("the queue is away")

    async def twice() -> None:
        admission = Admission(settings, Catalog.scan(settings), workers, lambda: None)
        with pytest.raises(Unavailable):
            await admission.live_workers()
        assert await admission.live_workers() == await admission.live_workers() == [READY]

    asyncio.run(twice())
