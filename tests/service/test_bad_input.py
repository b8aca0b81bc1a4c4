"""No bad input is a 5xx or an accepted job: the corpus of reliability.md 2.6, and thousands of random bodies."""

from __future__ import annotations

import json
import socket
import string
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.request import ImageParameters
from service.openai_images import ImagesBody
from service.openai_videos import VideosBody

if TYPE_CHECKING:
    import httpx

    from tests.service.conftest import Served

ROUTES = ("/v1/images/generations", "/v1/jobs", "/v1/videos")
JSON = {"Content-Type": "application/json"}
OK = b'"prompt": "a red circle"'


def check_refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in (statuses or range(400, 500)), (answer.status_code, answer.text)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]


def check_queue_empty(idle: Served) -> None:
    assert sum(idle.ask(lambda queue: queue.stats()).depth.values()) == 0


CORPUS: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"null", 422),
    (b"[]", 422),
    (b"{}", 422),
    (b"prompt=a", 400),
    (b"{" + OK + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
    (b"{" + OK + b', "seed": ' + b"9" * 200_000 + b"}", 422),
    (b"{" + OK + b', "guidance_scale": 1e999}', 422),
    (b"{" + OK + b', "guidance_scale": NaN}', 400),
    (b"{" + OK + b', "guidance_scale": -0.1}', 422),
    (b"{" + OK + b', "guidance_scale": "4"}', 422),
    (b"{" + OK + b', "seed": -1}', 422),
    (b"{" + OK + b', "seed": 4294967296}', 422),
    (b"{" + OK + b', "seed": 1e3}', 422),
    (b"{" + OK + b', "seed": true}', 422),
    (b"{" + OK + b', "n": 0}', 422),
    (b"{" + OK + b', "n": 5}', 422),
    (b"{" + OK + b', "num_inference_steps": 0}', 422),
    (b"{" + OK + b', "num_inference_steps": 51}', 422),
    (b"{" + OK + b', "num_inference_steps": 10.5}', 422),
    (b"{" + OK + b', "unknown": null}', 422),
    (b"{" + OK + b', "version": 1}', 422),
    (b"{" + OK + b', "notices": []}', 422),
    (b"{" + OK + b', "seed": 1, "seed": 1}', 422),
    (b"{" + OK + b', "profile": "w4a4"}', 422),
    (b"{" + OK + b', "profile": "../w8a8"}', 422),
    (b"{" + OK + b', "profile": ""}', 422),
    (b"{" + OK + b', "model": "nothing"}', 404),
    (b"{" + OK + b', "model": "../../etc"}', 422),
    (b"{" + OK + b', "model": ["tiny"]}', 422),
    (b"{" + OK + b', "priority": "urgent"}', 422),
    (b"{" + OK + b', "priority": 1}', 422),
    (b"{" + OK + b', "output_format": "tiff"}', 422),
    (b"{" + OK + b', "output_compression": 101}', 422),
    (b"{" + OK + b', "output_compression": 101, "output_format": "webp"}', 422),
    (b'{"prompt": ""}', 422),
    (b'{"prompt": "  \\n "}', 422),
    (b'{"prompt": null}', 422),
    (b'{"prompt": 7}', 422),
    (b'{"prompt": ["a"]}', 422),
    (b'{"prompt": "a\\u0000b"}', 422),
    (b'{"prompt": "\\ud800"}', 422),
    (b'{"prompt": "' + "\U0001f600".encode() * 2001 + b'"}', 422),
    (b'{"prompt": "' + b"a" * 2001 + b'"}', 422),
    (b'{"prompt": "a", "negative_prompt": "' + b"a" * 2001 + b'"}', 422),
    (b"\xef\xbb\xbf{" + OK + b"}", 400),
    (b"\xff\xfe{" + OK + b"}", 400),
]
NATIVE = [
    (b"{" + OK + b', "width": 15}', 422),
    (b"{" + OK + b', "width": 72}', 422),
    (b"{" + OK + b', "width": 64, "height": 64}', 422),
    (b"{" + OK + b', "height": 1e1}', 422),
    (b"{" + OK + b', "previews": 4}', 422),
    (b"{" + OK + b', "kind": "sound"}', 422),
    (b"{" + OK + b', "kind": ["video"]}', 422),
    (b"{" + OK + b', "kind": null}', 422),
    (b"{" + OK + b', "kind": "video", "n": 2}', 422),
    (b"{" + OK + b', "kind": "video", "num_frames": 10000}', 422),
    (b"{" + OK + b', "num_frames": 5}', 422),
    (b"{" + OK + b', "size": "16x16"}', 422),
]
VIDEOS = [
    (b"{" + OK + b', "num_frames": 6}', 422),
    (b"{" + OK + b', "num_frames": 10000}', 422),
    (b"{" + OK + b', "num_frames": 0}', 422),
    (b"{" + OK + b', "num_frames": 5.0}', 422),
    (b"{" + OK + b', "fps": 0}', 422),
    (b"{" + OK + b', "fps": 61}', 422),
    (b"{" + OK + b', "fps": "8"}', 422),
    (b"{" + OK + b', "seconds": 0}', 422),
    (b"{" + OK + b', "seconds": "-1"}', 422),
    (b"{" + OK + b', "seconds": "1e9"}', 422),
    (b"{" + OK + b', "seconds": true}', 422),
    (b"{" + OK + b', "size": "15x16"}', 422),
    (b"{" + OK + b', "width": 15}', 422),
    (b"{" + OK + b', "width": 64, "height": 64}', 422),
    (b"{" + OK + b', "output_format": "png"}', 422),
    (b"{" + OK + b', "input_reference": "a.png"}', 422),
    (b"{" + OK + b', "n": 1}', 422),
]
OPENAI = [
    (b"{" + OK + b', "size": "0x16"}', 422),
    (b"{" + OK + b', "size": "16X16"}', 422),
    (b"{" + OK + b', "size": "16"}', 422),
    (b"{" + OK + b', "size": "99999x16"}', 422),
    (b"{" + OK + b', "size": "72x16"}', 422),
    (b"{" + OK + b', "size": "64x64"}', 422),
    (b"{" + OK + b', "size": 16}', 422),
    (b"{" + OK + b', "partial_images": 2}', 422),
    (b"{" + OK + b', "partial_images": 4, "stream": true}', 422),
    (b"{" + OK + b', "stream": "yes"}', 422),
    (b"{" + OK + b', "response_format": "file"}', 422),
    (b"{" + OK + b', "quality": "hd"}', 422),
    (b"{" + OK + b', "background": "transparent"}', 422),
    (b"{" + OK + b', "style": "vivid"}', 422),
    (b"{" + OK + b', "width": 16}', 422),
]
CASES = [(route, *case) for route in ROUTES for case in CORPUS]
CASES += [(route, *case) for route, cases in zip(ROUTES, (OPENAI, NATIVE, VIDEOS), strict=True) for case in cases]


def test_the_corpus_is_refused(idle: Served) -> None:
    for route, raw, status in CASES:
        answer = idle.client.post(route, content=raw, headers=JSON)
        assert answer.status_code == status, (route, raw[:80], answer.text)
        check_refused(answer)
    check_queue_empty(idle)


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "text/plain"}, b"{" + OK + b"}", 415),
        ({}, b"{" + OK + b"}", 415),
        ({"Content-Type": "application/json; charset=utf-16"}, b"{" + OK + b"}", 415),
        ({"Content-Type": "application/json; charset*0=a; charset*" + "1" * 4500 + "=b"}, b"{" + OK + b"}", 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00", 415),
        (JSON, b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413),
        (JSON | {"Idempotency-Key": "k" * 129}, b"{" + OK + b"}", 400),
        (JSON | {"X-Long": "x" * 20_000}, b"{" + OK + b"}", 431),
        (JSON | {"Prefer": "respond-async"}, b"{" + OK + b', "stream": true}', 422),
    ],
    ids=["text", "none", "utf-16", "4500 digits", "gzip", "10 MB", "long key", "long header", "stream and async"],
)
def test_wrong_heads_and_long_bodies(idle: Served, headers: dict[str, str], content: bytes, status: int) -> None:
    check_refused(idle.client.post(ROUTES[0], content=content, headers=headers), status)
    check_queue_empty(idle)


def test_a_body_without_an_end_is_cut_while_it_comes(idle: Served) -> None:
    with socket.create_connection(("127.0.0.1", idle.server.port), timeout=10) as connection:
        head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(5):
            connection.sendall(chunk)
        answer = b""
        while b"body_too_large" not in answer and (part := connection.recv(65536)):
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer
    check_queue_empty(idle)


@pytest.mark.parametrize("job_id", ["0", "g" * 32, "A" * 32, "0" * 33, "..", "%00", "0" * 31 + "%0a", "\u0660" * 32])
def test_ids_of_every_shape(idle: Served, job_id: str) -> None:
    check_refused(idle.client.get(f"/v1/jobs/{job_id}"), 404)
    check_refused(idle.client.get(f"/v1/jobs/{job_id}/events"), 404)
    check_refused(idle.client.post(f"/v1/jobs/{job_id}/cancel"), 404)
    check_refused(idle.client.put(f"/v1/jobs/{job_id}", json={"prompt": "a"}), 404, 405, 422)
    check_queue_empty(idle)


@pytest.mark.parametrize("place", ["x", "-1", "1-", "1-2-3", "99999999999999999999999-0", "$", "+"])
def test_places_in_a_log(idle: Served, place: str) -> None:
    check_refused(idle.client.get(f"/v1/jobs/{'0' * 32}/events", headers={"Last-Event-ID": place}), 422)


def test_routes_and_methods_that_are_not_there(idle: Served) -> None:
    check_refused(idle.client.get("/"), 404)
    check_refused(idle.client.get("/v1/images/generations"), 405)
    check_refused(idle.client.delete("/v1/jobs"), 405)
    check_refused(idle.client.post("/v1/jobs/"), 404)
    check_refused(idle.client.get("/v1/jobs?limit=" + "9" * 9000), 414)


FIELDS = sorted({*ImagesBody.model_fields, *VideosBody.model_fields, *ImageParameters.model_fields, "lora", "steps"})
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["png", "jpeg", "url", "auto", "64x64", "w8a8", "tiny", "high", 16, 4, 0, -1, 1e300, "\x00"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6)
PROMPTS = st.text(alphabet=string.ascii_letters + " \u00e9\u202e\u200b\U0001f600", max_size=40)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, prompt=st.none() | PROMPTS, route=st.sampled_from(ROUTES))
def test_random_fields(idle: Served, body: dict[str, Any], prompt: str | None, route: str) -> None:
    if prompt is not None:
        body = body | {"prompt": prompt}
    # respond-async, so that what is valid by chance answers at once; it is canceled again
    raw = json.dumps(body).encode()
    headers = JSON | {"Prefer": "respond-async"}
    answer = idle.client.post(route, content=raw, headers=headers)
    if answer.status_code in (200, 202):
        accepted = answer.json()
        ImageParameters.model_validate({"prompt": accepted.get("request", accepted)["prompt"]})
        idle.client.post(f"/v1/jobs/{answer.json()['id']}/cancel")
    else:
        check_refused(answer)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200), route=st.sampled_from(ROUTES))
def test_random_bytes(idle: Served, raw: bytes, route: str) -> None:
    check_refused(idle.client.post(route, content=raw, headers=JSON))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=1, max_size=120))
def test_random_connections(idle: Served, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", idle.server.port), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert not answer.startswith(b"HTTP/1.1 5")


def test_nothing_of_all_that_was_accepted(idle: Served) -> None:
    check_queue_empty(idle)
    assert idle.client.get("/healthz").status_code == 200
