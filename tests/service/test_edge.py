"""What every answer carries, who may ask, and how the gateway ends."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import Served

ROOT = Path(__file__).parents[2]
KEYS = ("first-key", "second-key")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], work: Callable[..., Any]
) -> Iterator[Served]:
    """A gateway with two keys; its client shows the first."""
    hashes = tuple(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)
    settings = make_settings(api_key_hashes=hashes, max_queued_per_key=3, event_streams_per_key=1)
    worker = work(settings)
    worker.start()
    with serve(settings, bearer(KEYS[0])) as gateway:
        yield gateway
    worker.stop()


def test_every_answer_carries_the_security_headers(served: Served) -> None:
    for path in ("/healthz", "/v1/models", "/nowhere", "/v1/jobs/x", "/docs"):
        headers = served.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path
        assert headers["cache-control"] == "no-store", path
        assert "server" not in headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[fe80::1]"]
)
def test_a_web_page_cannot_point_its_name_here(served: Served, host: str) -> None:
    answer = served.client.get("/v1/models", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_this_machines_names_are_served(served: Served, host: str) -> None:
    assert served.client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": ""}, bearer("wrong"), {"Authorization": "first-key"}, {"Authorization": "Bearer"}, bearer("é")],
)
def test_a_wrong_key_is_refused_everywhere(guarded: Served, headers: dict[str, str]) -> None:
    sent = {name.encode(): value.encode() for name, value in headers.items()}
    for method, path in (
        ("POST", "/v1/images/generations"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("PUT", f"/v1/jobs/{'0' * 32}"),
        ("GET", f"/v1/jobs/{'0' * 32}"), ("GET", f"/v1/jobs/{'0' * 32}/events"), ("GET", "/v1/models"),
        ("POST", f"/v1/jobs/{'0' * 32}/cancel"), ("GET", "/v1/dead-letters"), ("GET", "/v1/capabilities"),
        ("GET", f"/v1/files/{'0' * 32}-{'0' * 16}-0.png"), ("GET", "/v1/profiles"),
    ):  # fmt: skip
        answer = httpx.request(method, guarded.url + path, headers=sent, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_probes_need_no_key(guarded: Served) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert httpx.get(guarded.url + path).status_code == 200


def test_a_key_sees_only_its_own(guarded: Served) -> None:
    job = guarded.client.post("/v1/jobs", json={"prompt": "a red circle"}).json()
    url = guarded.until(job["id"], "succeeded")["result"]["files"][0]["url"]
    other = bearer(KEYS[1])
    for path in (f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/events", url):
        assert guarded.client.get(path).status_code == 200
        assert guarded.client.get(path, headers=other).status_code == 404
    assert guarded.client.post(f"/v1/jobs/{job['id']}/cancel", headers=other).status_code == 404
    assert guarded.client.get("/v1/jobs", headers=other).json()["data"] == []
    taken = guarded.client.put(f"/v1/jobs/{job['id']}", json={"prompt": "a red circle"}, headers=other)
    assert taken.status_code in (404, 409)
    assert job["id"] not in guarded.client.get("/v1/dead-letters", headers=other).text


def test_no_key_is_in_the_log(guarded: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        guarded.client.get("/v1/models?key=first-key")
        guarded.client.get("/v1/models", headers=bearer("guess-key"))
    text = caplog.text
    assert "route=/v1/models status=200" in text
    assert "guess-key" not in text
    assert "first-key" not in text.replace("?key=first-key", "")  # httpx logs what the test itself sent


def test_streams_are_bounded_per_key(guarded: Served) -> None:
    job = guarded.client.post("/v1/jobs", json={"prompt": "hold a"}).json()
    path = f"/v1/jobs/{job['id']}/events"
    with guarded.client.stream("GET", path) as stream:
        lines = stream.iter_lines()  # kept: httpx closes the connection when this is collected
        next(lines)
        answer = guarded.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_streams")
        assert answer.headers["retry-after"]
    guarded.client.post(f"/v1/jobs/{job['id']}/cancel")
    guarded.until(job["id"], "canceled")


def test_open_requests_are_bounded(make_settings: Callable[..., Settings], serve: Callable[..., Any]) -> None:
    with serve(make_settings(max_open_requests=1)) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.server.port)) as connection:
            head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 9\r\n\r\n".encode())  # its body never comes
            time.sleep(0.2)
            answer = gateway.client.get("/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
            assert gateway.client.get("/healthz").status_code == 200
        time.sleep(0.2)
        assert gateway.client.get("/v1/models").status_code == 200


def test_a_slow_head_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.protocol.HEAD_SECONDS", 0.5)
    for first in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.server.port), timeout=5) as connection:
            connection.sendall(first)
            assert not first or connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET / HT")
            started = time.monotonic()
            while connection.recv(65536):
                pass
            assert time.monotonic() - started < 3


def test_a_long_wait_for_an_answer_is_no_slow_head(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.protocol.HEAD_SECONDS", 0.3)
    with httpx.Client(base_url=served.url) as client:
        path = f"/v1/jobs/{client.post('/v1/jobs', json={'prompt': 'hold a'}).json()['id']}"
        with client.stream("GET", f"{path}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            time.sleep(0.8)
            client.post(f"{path}/cancel")
            assert "event: canceled" in list(lines)


def test_draining_finishes_what_is_open(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], work: Callable[..., Any]
) -> None:
    settings = make_settings(drain_notice_seconds=1.5)
    worker = work(settings)
    worker.start()
    with serve(settings) as gateway:
        held: list[httpx.Response] = []
        body = {"prompt": "hold a", "seed": 1}
        thread = threading.Thread(
            target=lambda: held.append(httpx.post(f"{gateway.url}/v1/images/generations", json=body, timeout=20))
        )
        thread.start()
        while not (jobs := gateway.client.get("/v1/jobs", params={"status": "running"}).json()["data"]):
            time.sleep(0.02)
        gateway.in_loop(gateway.server.leave)
        ready = gateway.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "DRAINING")
        refused = gateway.client.post("/v1/jobs", json={"prompt": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        gateway.ask(lambda queue: queue.cancel(jobs[0]["id"]))
        thread.join(10)
        assert (held[0].status_code, held[0].json()["error"]["code"]) == (409, "canceled")
    worker.stop()


def test_the_process_starts_and_leaves_on_sigterm(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    assert settings.redis_url is not None
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HALFTONE_", "REDIS_"))} | {
        "HALFTONE_DATA": str(settings.data),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "HALFTONE_PORT": "0",
        "HALFTONE_DRAIN_NOTICE_SECONDS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service"], env=env, cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stderr is not None
    url = next(line.rpartition(" ")[2].strip() for line in process.stderr if "listening on" in line)
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    process.stderr.close()


def test_an_open_door_is_refused_at_start() -> None:
    env = os.environ | {"HALFTONE_HOST": "0.0.0.0"}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env=env,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "HALFTONE_API_KEY_HASHES" in done.stderr
    assert "Traceback" not in done.stderr
