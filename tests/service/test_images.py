"""POST /v1/images/generations over real HTTP: pictures by link, inline, streamed, later; faults; closed requests."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from jobs.job import JobState
from service.documents import JOB_EXAMPLES
from service.openai_images import DOCUMENTED
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import Served

ROUTE = "/v1/images/generations"


def colour(data: bytes) -> Any:
    return Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))


def test_a_prompt_goes_in_and_a_picture_comes_out(served: Served) -> None:
    answer = served.client.post(ROUTE, json={"prompt": "a red circle", "seed": 7, "n": 2, "profile": "w8a8"})
    assert answer.status_code == 200
    body = answer.json()
    assert [picture["seed"] for picture in body["data"]] == [7, 8]
    assert body["output_format"] == "png"
    assert body["size"] == "16x16"
    assert body["halftone"]["used"]["profile"] == "w8a8"
    assert body["halftone"]["used"]["num_inference_steps"] == 4
    assert body["halftone"]["costs"]["denoise_seconds"] > 0
    assert body["halftone"]["notices"] == []
    picture = httpx.get(body["data"][1]["url"])
    assert picture.headers["content-type"] == "image/png"
    assert colour(picture.content) == (8, 8, 8)
    job = served.client.get(answer.headers["location"]).json()
    assert job["status"] == "succeeded"
    assert job["result"]["files"][1]["url"] == body["data"][1]["url"]


def test_inline_pictures_and_formats(served: Served) -> None:
    fields = {"prompt": "a red circle", "seed": 9, "response_format": "b64_json", "output_format": "webp"}
    body = served.client.post(ROUTE, json=fields | {"output_compression": 80, "size": "32x24"}).json()
    picture = Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
    assert (picture.format, picture.size) == ("WEBP", (32, 24))
    assert body["data"][0]["url"] is None


def test_a_drawn_seed_is_told(served: Served) -> None:
    seeds = {served.client.post(ROUTE, json={"prompt": "a red circle"}).json()["data"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_unknown_words_and_sizes_come_back_as_notices(served: Served) -> None:
    answer = served.client.post(ROUTE, json={"prompt": "a Red dragon, of   fire", "size": "24x24"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    notices = {notice["code"]: notice["message"] for notice in body["halftone"]["notices"]}
    assert "dragon, fire" in notices["unknown_words"]
    assert "16x16" in notices["untrained_size"]


@pytest.mark.parametrize("body", [example["value"] for example in (*DOCUMENTED.values(), *JOB_EXAMPLES.values())])
def test_documented_examples_are_valid(served: Served, body: dict[str, Any]) -> None:
    native = "kind" in body
    moving = body.get("kind") == "video"
    fitted = body | ({"width": 16, "height": 16} if native else {"size": "auto"})
    fitted |= {"model": "moving" if moving else "tiny"}
    answer = served.client.post("/v1/jobs" if native else ROUTE, json=fitted)
    assert answer.status_code == (202 if native else 200), answer.text


def test_respond_async_answers_a_job_at_once(served: Served) -> None:
    answer = served.client.post(ROUTE, json={"prompt": "a red circle"}, headers={"Prefer": "respond-async, wait=1"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    job = answer.json()
    assert answer.headers["location"] == job["urls"]["get"] == f"{served.url}/v1/jobs/{job['id']}"
    assert served.until(job["id"], "succeeded")["result"]["used"]["seed"] == job["request"]["seed"]


def test_a_failed_job_tells_its_own_code_and_no_retry(served: Served) -> None:
    answer = served.client.post(ROUTE, json={"prompt": "fail a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "out_of_memory"
    assert answer.json()["error"]["message"] == "ask for a smaller picture"
    assert answer.headers["x-should-retry"] == "false"
    assert served.client.get(answer.headers["location"]).json()["error"]["code"] == "out_of_memory"


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_body(served: Served) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first, second = (served.client.post(ROUTE, json={"prompt": "a red"}, headers=headers).json() for _ in range(2))
    assert first == second
    other = served.client.post(ROUTE, json={"prompt": "a blue"}, headers=headers)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_conflict"
    bad = served.client.post(ROUTE, json={"prompt": "a blue"}, headers={"Idempotency-Key": "a b"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_header")


def frames(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Events of a stream: (name, data)."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_a_stream_sends_previews_and_then_each_picture(served: Served) -> None:
    fields = {"prompt": "a red circle", "stream": True, "partial_images": 2, "n": 2, "seed": 3}
    answer = served.client.post(ROUTE, json=fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = frames(answer.text)
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert [name for name, _ in events] == [partial, partial, completed, completed]
    assert [data["partial_image_index"] for _, data in events[:2]] == [0, 1]
    assert colour(base64.b64decode(events[3][1]["b64_json"])) == (4, 4, 4)
    assert events[3][1]["halftone"]["job_id"] == events[2][1]["halftone"]["job_id"]


def test_a_stream_of_a_failed_job_ends_with_an_error(served: Served) -> None:
    events = frames(served.client.post(ROUTE, json={"prompt": "fail a", "stream": True}).text)
    assert [name for name, _ in events] == ["error"]
    assert events[0][1]["error"]["code"] == "out_of_memory"


def test_a_repeated_stream_tells_the_finished_job_again(served: Served) -> None:
    fields = {"prompt": "a red circle", "stream": True}
    texts = [served.client.post(ROUTE, json=fields, headers={"Idempotency-Key": "s1"}).text for _ in range(2)]
    first, second = (frames(text)[-1][1] for text in texts)
    assert first["halftone"] == second["halftone"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_request_cancels_its_job(served: Served, stream: bool) -> None:
    body = json.dumps({"prompt": "hold a red circle", "stream": stream}).encode()
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.server.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        job = newest(served)
        served.until(job, "running")
    assert served.until(job, "canceled")["cancel_requested"] is True


def newest(served: Served) -> str:
    """The id of the `hold` job that was just asked for."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        page = served.ask(lambda queue: queue.list("", limit=1))
        if page.jobs and page.jobs[0].request.prompt.startswith("hold") and not page.jobs[0].state.final:
            return page.jobs[0].id
        time.sleep(0.01)
    raise AssertionError("no job came")


def test_a_closed_request_with_a_key_leaves_its_job(served: Served) -> None:
    fields = {"prompt": "hold a blue circle"}
    with pytest.raises(httpx.ReadTimeout):
        served.client.post(ROUTE, json=fields, headers={"Idempotency-Key": "stay"}, timeout=0.5)
    job = newest(served)
    time.sleep(0.3)
    assert served.until(job, "running")["cancel_requested"] is False
    served.client.post(f"/v1/jobs/{job}/cancel")
    served.until(job, "canceled")
    again = served.client.post(ROUTE, json=fields, headers={"Idempotency-Key": "stay"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "canceled")


def test_patience_ends_with_504_and_the_job_goes_on(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], work: Callable[..., Any]
) -> None:
    settings = make_settings(sync_wait_seconds=0.3)
    worker = work(settings)
    worker.start()
    with serve(settings) as gateway:
        answer = gateway.client.post(ROUTE, json={"prompt": "hold a"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        job_id = answer.headers["location"].rpartition("/")[2]
        assert gateway.ask(lambda queue: queue.get(job_id)).state is JobState.RUNNING
        gateway.client.post(f"/v1/jobs/{job_id}/cancel")
        gateway.until(job_id, "canceled")
    worker.stop()
