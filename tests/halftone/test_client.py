"""Both Python clients against the whole service: pictures, events, cancel, paging, retries, errors."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from halftone import AsyncClient, Client, Event, RetryPolicy
from jobs import errors

GONE = "0" * 32


@pytest.fixture
def client(serving: Any) -> Any:
    with Client(serving.url) as opened:
        yield opened


def test_pictures_are_made_and_saved(client: Client, tmp_path: Path) -> None:
    seen: list[Event] = []
    images = client.generate("hello", n=2, seed=41, size="32x24", on_event=seen.append)
    assert [picture.seed for picture in images] == [41, 42]
    assert (images.used.width, images.used.height, images.used.profile) == (32, 24, "float")
    assert [path.read_bytes()[:4] for path in images.save(tmp_path / "x.png")] == [b"\x89PNG"] * 2
    assert [event.type for event in seen][-1] == "succeeded"
    assert {"queued", "started"} <= {event.type for event in seen}


def test_a_key_makes_one_job_of_two_submits(client: Client) -> None:
    first = client.submit("hello", idempotency_key="once", seed=1)
    assert client.submit("hello", idempotency_key="once", seed=1).id == first.id
    with pytest.raises(errors.IdempotencyConflict):
        client.submit("other", idempotency_key="once", seed=1)


def test_events_resume_where_they_ended(client: Client) -> None:
    job = client.submit("hello")
    events = list(client.watch(job.id))
    assert len(events) >= 3
    assert list(client.watch(job.id, after=events[0].id)) == events[1:]
    assert list(client.watch(job.id, after=events[-1].id)) == []


def test_a_running_job_is_canceled(client: Client) -> None:
    job = client.submit("sleep 5", num_inference_steps=10)
    for event in client.watch(job.id):
        if event.type == "started":
            client.cancel(job.id)
    assert client.job(job.id).status == "canceled"
    done = client.generate("hello").job_id
    with pytest.raises(errors.JobFinished):
        client.cancel(done)


def test_waiting_ends_in_time_and_the_job_goes_on(client: Client) -> None:
    job = client.submit("sleep 0.5", num_inference_steps=4)
    with pytest.raises(errors.TimedOut):
        client.wait(job.id, timeout=0.3)
    assert client.wait(job.id).status == "succeeded"


def test_who_gives_up_waiting_cancels(client: Client) -> None:
    with pytest.raises(errors.TimedOut):
        client.generate("sleep 5", num_inference_steps=10, seed=999, timeout=0.5)
    newest = client.jobs(limit=1).data[0]
    assert newest.request["seed"] == 999
    assert client.wait(newest.id).status == "canceled"


def test_jobs_are_listed_by_pages(client: Client) -> None:
    made = [client.submit("hello", seed=seed).id for seed in range(3)]
    first = client.jobs(limit=2)
    assert [job.id for job in first.data] == [made[2], made[1]]
    assert first.has_more
    assert client.jobs(limit=1, after=made[1]).data[0].id == made[0]


def test_models_profiles_and_capabilities(client: Client) -> None:
    assert "null" in {model.id for model in client.models()}
    card = next(card for card in client.profiles() if card.model == "null")
    assert (card.name, card.backend) == ("float", "null")
    assert client.capabilities()["default_model"] == "null"


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"profile": "w0a0"}, errors.UnknownProfile, "profile"),
        ({"model": "nobody"}, errors.UnknownModel, "model"),
        ({"seed": -1}, errors.InvalidRequest, "seed"),
        ({"colour": "red"}, errors.InvalidRequest, "colour"),
    ],
)
def test_faults_raise_their_classes(
    client: Client, fields: dict[str, Any], error: type[errors.HalftoneError], param: str
) -> None:
    with pytest.raises(error) as caught:
        client.submit("hello", **fields)
    assert caught.value.param == param


def test_what_is_not_there(client: Client) -> None:
    with pytest.raises(errors.NotFound):
        client.job(GONE)
    with pytest.raises(errors.NotFound):
        list(client.watch(GONE))
    with pytest.raises(errors.NotFound):
        client.file(f"{GONE}-0123456789abcdef-0.png")


def test_nobody_there_is_told_with_the_address() -> None:
    with (
        Client("http://127.0.0.1:9", retry=RetryPolicy(retries=1)) as client,
        pytest.raises(errors.Unavailable, match=r"http://127\.0\.0\.1:9"),
    ):
        client.models()


def answering(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives the answers in order, and the requests that came."""
    asked: list[httpx.Request] = []
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle), asked


def busy(seconds: str) -> httpx.Response:
    body = {"error": {"code": "queue_full", "message": "full", "param": None, "type": "rate_limit_error"}}
    return httpx.Response(429, json=body, headers={"retry-after": seconds})


JOB = {"id": GONE, "status": "queued", "model": "m", "profile": "float", "created_at": 0.0}


def test_a_refused_submit_is_made_again_with_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    transport, asked = answering(busy("3"), httpx.ConnectError("refused"), httpx.Response(202, json=JOB))
    with Client("http://gateway", transport=transport) as client:
        assert client.submit("hello").id == GONE
    assert slept == [3.0, 0.4]
    assert len({request.headers["idempotency-key"] for request in asked}) == 1
    assert len(asked) == 3


def test_a_submit_that_is_refused_for_good_is_told() -> None:
    transport, asked = answering(*[busy("0")] * 3)
    with (
        Client("http://gateway", transport=transport, retry=RetryPolicy(retries=2)) as client,
        pytest.raises(errors.QueueFull, match="full"),
    ):
        client.submit("hello")
    assert len(asked) == 3


def test_a_broken_stream_is_taken_up_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    events = [f"id: {i}-0\nevent: {kind}\ndata: {{}}\n\n" for i, kind in enumerate(["queued", "started", "succeeded"])]
    headers = {"content-type": "text/event-stream"}
    transport, asked = answering(
        httpx.Response(200, text=events[0], headers=headers),
        httpx.Response(200, json=JOB),
        httpx.ReadError("reset"),
        httpx.Response(200, text=events[1] + events[2], headers=headers),
    )
    with Client("http://gateway", transport=transport) as client:
        assert [event.type for event in client.watch(GONE)] == ["queued", "started", "succeeded"]
    assert [request.headers.get("last-event-id") for request in asked] == [None, None, "0-0", "0-0"]


def crowded() -> httpx.Response:
    body = {"error": {"code": "too_many_streams", "message": "close one", "param": None}}
    return httpx.Response(429, json=body, headers={"retry-after": "5"})


def ending() -> httpx.Response:
    return httpx.Response(200, text="id: 1-0\nevent: succeeded\ndata: {}\n\n")


def test_a_stream_that_is_refused_for_now_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    transport, asked = answering(crowded(), httpx.Response(503, text="draining"), ending())
    with Client("http://gateway", transport=transport) as client:
        assert [event.type for event in client.watch(GONE)] == ["succeeded"]
    assert (slept, len(asked)) == ([5.0, 0.4], 3)
    transport, asked = answering(*[crowded()] * 3)
    with (
        Client("http://gateway", transport=transport, retry=RetryPolicy(retries=2)) as client,
        pytest.raises(errors.HalftoneError, match="close one"),
    ):
        list(client.watch(GONE))
    assert len(asked) == 3


def test_nobody_waits_for_another_try_past_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    wait = time.sleep

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        wait(min(seconds, 0.3))

    monkeypatch.setattr(time, "sleep", sleep)
    transport, asked = answering(*[crowded()] * 9)
    with Client("http://gateway", transport=transport) as client, pytest.raises(errors.TimedOut):
        list(client.watch(GONE, timeout=0.2))
    assert slept and max(slept) <= 0.2
    assert len(asked) == len(slept)


def test_a_client_is_shared_between_threads(client: Client) -> None:
    made: list[int] = []
    threads = [threading.Thread(target=lambda: made.append(len(client.generate("hello")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert made == [1] * 4


@pytest.mark.anyio
async def test_the_async_client_does_the_same(serving: Any) -> None:
    async with AsyncClient(serving.url) as client:
        images = await client.generate("hello", seed=3)
        assert images[0].seed == 3
        job = await client.submit("sleep 5", num_inference_steps=10)
        async for event in client.watch(job.id):
            if event.type == "started":
                await client.cancel(job.id)
        assert (await client.wait(job.id)).status == "canceled"
        assert (await client.jobs(limit=1)).data[0].id == job.id
        assert {model.id for model in await client.models()} >= {"null"}
        assert {card.name for card in await client.profiles()} >= {"float"}
        assert (await client.capabilities())["default_model"] == "null"
        with pytest.raises(errors.TimedOut):
            await client.generate("sleep 5", timeout=0.3)
        with pytest.raises(errors.UnknownProfile):
            await client.submit("hello", profile="w0a0")


@pytest.mark.anyio
async def test_the_async_client_tries_again() -> None:
    transport, asked = answering(busy("0"), httpx.ConnectError("refused"), httpx.Response(202, json=JOB))
    async with AsyncClient("http://gateway", transport=transport) as client:
        assert (await client.submit("hello")).id == GONE
    assert len({request.headers["idempotency-key"] for request in asked}) == 1
    assert len(asked) == 3


@pytest.mark.anyio
async def test_the_async_client_opens_a_refused_stream_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    transport, asked = answering(crowded(), httpx.ReadError("reset"), ending())
    async with AsyncClient("http://gateway", transport=transport) as client:
        assert [event.type async for event in client.watch(GONE)] == ["succeeded"]
    assert (slept, len(asked)) == ([5.0, 0.4], 3)


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type[object]) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_promises_travel_and_the_guard_is_asked(client: Client) -> None:
    images = client.generate("hello", profile="auto", quality={"min_psnr_db": 40}, deadline_seconds=60)
    assert images.used.profile == "float"
    assert images.notices[0].code == "profile_chosen"
    found = client.guard()
    assert (found.data, found.action) == ((), "report")
    with pytest.raises(errors.NotFound, match="no verdict to lift"):
        client.lift("null", "float")
    with pytest.raises(errors.PromiseUnmet, match="nearest is float"):
        client.submit("hello", profile="auto", deadline_seconds=1e-9)
