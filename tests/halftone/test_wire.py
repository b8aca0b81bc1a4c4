"""What both clients share: events from lines, errors from answers, when to try again, what is never sent."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from halftone import wire
from halftone.wire import Event, EventParser, RetryPolicy
from jobs import errors

JOB = "0" * 32


def answer(status: int, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
    request = httpx.Request("GET", "http://gateway/v1/x")
    return httpx.Response(status, json=body, headers=headers, request=request)


def events_of(text: str) -> list[Event]:
    parser = EventParser()
    return [event for line in text.split("\n") if (event := parser.feed(line)) is not None]


def test_events_are_read_from_lines() -> None:
    text = 'id: 1-0\nevent: progress\ndata: {"step":1,\ndata: "total":2}\n\n: ping\n\n'
    text += "id: 2-0\nevent: succeeded\ndata: {}\n\n"
    first, second = events_of(text)
    assert first == Event("1-0", "progress", {"step": 1, "total": 2})
    assert not first.final
    assert second.final


def test_an_event_that_is_no_json_object_is_told() -> None:
    with pytest.raises(errors.Unavailable, match="not JSON"):
        events_of("data: {\n\n")
    with pytest.raises(errors.Unavailable, match="list where an object"):
        events_of("data: []\n\n")


def test_errors_come_back_as_their_classes() -> None:
    body = {"error": {"code": "unknown_profile", "message": "no such profile", "param": "profile", "type": "x"}}
    error = wire.error_of(answer(422, body))
    assert type(error) is errors.UnknownProfile
    assert (error.message, error.param, error.code) == ("no such profile", "profile", "unknown_profile")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, errors.Unauthorized), (404, errors.NotFound), (418, errors.InvalidRequest), (503, errors.Unavailable)],
)
def test_codes_of_a_newer_gateway_fall_back_to_the_status(status: int, kind: type[errors.HalftoneError]) -> None:
    error = wire.error_of(answer(status, {"error": {"code": "from_the_future", "message": "m", "param": None}}))
    assert type(error) is kind
    assert error.code == "from_the_future"


def test_an_answer_without_our_envelope_is_shown() -> None:
    error = wire.error_of(httpx.Response(502, text="<html>", request=httpx.Request("GET", "http://gateway/")))
    assert isinstance(error, errors.Unavailable)
    assert "502: <html>" in error.message


def test_retry_after_is_read_and_obeyed() -> None:
    body = {"error": {"code": "queue_full", "message": "full", "param": None}}
    error = wire.error_of(answer(429, body, {"retry-after": "3"}))
    assert RetryPolicy().delay(0, error) == 3.0
    assert RetryPolicy(max_wait=2).delay(0, error) is None
    assert RetryPolicy(retries=2).delay(2, error) is None
    assert wire.retry_after(httpx.Headers({"retry-after": "Fri, 21 Nov 2026 00:00:00 GMT"})) is None


def test_only_what_time_can_heal_is_tried_again() -> None:
    assert RetryPolicy().delay(0, errors.InvalidRequest("no")) is None
    waits = [RetryPolicy().delay(attempt, errors.Unavailable("away")) for attempt in range(7)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, None]


def test_a_submission_leaves_out_what_was_not_asked() -> None:
    call = wire.submission("a red circle", "64x48", None, {"seed": 0, "profile": None})
    assert call.body == {"prompt": "a red circle", "seed": 0, "width": 64, "height": 48}
    assert len(call.headers["idempotency-key"]) == 32
    assert wire.submission("a", None, "mine", {}).headers == {"idempotency-key": "mine"}


@pytest.mark.parametrize("size", ["64", "64x", "x64", "64X64", "-1x64", "64x64x64", "123456x1"])
def test_a_size_must_be_two_numbers(size: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="64x64"):
        wire.parse_size(size)


def test_size_and_width_together_are_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="either size"):
        wire.submission("a", "64x64", None, {"width": 64})


@pytest.mark.parametrize("text", ["", "..", "../" + "0" * 29, "0" * 31, "G" * 32, "0" * 32 + "/x"])
def test_ids_cannot_reach_other_paths(text: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        wire.job_path(text)
    with pytest.raises(errors.InvalidRequest):
        wire.file_path("../" + text)


def test_the_environment_says_where_the_gateway_is() -> None:
    variables = {"HALFTONE_URL": "https://pictures.example/", "HALFTONE_API_KEY": "secret"}
    base, headers = wire.connection(None, None, variables)
    assert base == "https://pictures.example"
    assert headers["authorization"] == "Bearer secret"
    assert wire.connection("http://other", None, variables)[0] == "http://other"
    assert "authorization" not in wire.connection(None, None, {})[1]
    with pytest.raises(errors.InvalidRequest, match="http://"):
        wire.connection("gateway:8000", None, {})


@pytest.mark.parametrize("url", ["http://[::1", "http://gateway:8000x"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="is no URL") as caught:
        wire.connection(url, None, {})
    assert caught.value.param == "url"


@pytest.mark.parametrize("key", ["secret\u00a0", "secret\r", "\u201csecret\u201d"])
def test_a_key_that_no_header_holds_is_told_and_not_shown(key: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="printable ASCII") as caught:
        wire.connection(None, None, {"HALFTONE_API_KEY": key})
    assert caught.value.param == "api_key" and "secret" not in caught.value.message


def test_every_error_class_is_found_by_its_code() -> None:
    for kind in (errors.QueueFull, errors.NoWorker, errors.Expired, errors.JobFinished, errors.IdempotencyConflict):
        assert wire.error_class(kind.code, 400) is kind


@pytest.mark.parametrize("value", [float("nan"), {"min_psnr_db": float("inf")}, object(), "\udcff"])
def test_what_json_cannot_hold_is_refused_by_its_name(value: Any) -> None:
    for call in (wire.submission, wire.comparison):
        with pytest.raises(errors.InvalidRequest, match=r"quality: .* cannot be sent as JSON") as caught:
            call("a", None, None, {"quality": value})
        assert caught.value.param == "quality"
    with pytest.raises(errors.InvalidRequest, match=r"^prompt: "):
        wire.submission("a\udcff", None, None, {})
    with pytest.raises(errors.InvalidRequest, match=r"^prompts: "):
        wire.comparison(["a", "\udcff"], None, None, {})


def test_a_comparison_drops_nothing_that_was_asked() -> None:
    call = wire.comparison("a", "64x48", "mine", {"prompt": "b", "seed": None})
    assert call.body == {"prompts": ["a"], "prompt": "b", "width": 64, "height": 48}
    assert call.headers == {"idempotency-key": "mine", "prefer": "respond-async"}
