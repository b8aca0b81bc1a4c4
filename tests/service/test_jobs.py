"""/v1/jobs over real HTTP: submit, repeat, look, follow and resume, cancel, list, dead letters."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from jobs.records import Claim
from service.settings import Settings

if TYPE_CHECKING:
    from jobs.queue import JobQueue
    from tests.service.conftest import Served


def submit(served: Served, **fields: Any) -> dict[str, Any]:
    answer = served.client.post("/v1/jobs", json={"prompt": "a red circle"} | fields)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def events(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    """A stream's events: (id, type, data)."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["id"], lines["event"], json.loads(lines["data"])))
    return found


def test_a_job_from_submit_to_result(served: Served) -> None:
    job = submit(served, seed=4, priority="high", width=24, height=32)
    assert (job["object"], job["kind"], job["status"], job["model"]) == ("job", "image", "queued", "tiny")
    assert job["queue_position"] is not None
    done = served.until(job["id"], "succeeded")
    assert done["created_at"] <= done["started_at"] <= done["finished_at"] < done["expires_at"]
    assert done["progress"]["percentage"] == 100.0
    assert done["request"]["priority"] == "high"
    assert (done["result"]["files"][0]["width"], done["result"]["files"][0]["height"]) == (24, 32)
    assert done["result"]["costs"]["peak_bytes"] == 0
    assert done["error"] is None
    assert served.client.get(done["result"]["files"][0]["url"]).status_code == 200


def test_put_is_idempotent(served: Served) -> None:
    job_id = secrets.token_hex(16)
    first = served.client.put(f"/v1/jobs/{job_id}", json={"prompt": "a red circle"})
    assert (first.status_code, first.json()["id"]) == (202, job_id)
    again = served.client.put(f"/v1/jobs/{job_id}", json={"prompt": "a red circle"})
    assert (again.status_code, again.json()["request"]) == (200, first.json()["request"])
    other = served.client.put(f"/v1/jobs/{job_id}", json={"prompt": "a blue circle"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_a_repeat_is_answered_even_when_no_worker_is_left(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], work: Callable[..., Any]
) -> None:
    settings = make_settings()
    worker = work(settings)
    worker.start()
    with serve(settings) as gateway:
        path, body = f"/v1/jobs/{secrets.token_hex(16)}", {"prompt": "a red circle"}
        assert gateway.client.put(path, json=body).status_code == 202
        worker.stop()
        gateway.ask(lambda queue: queue.farewell("fake"))
        time.sleep(1.1)  # the gateway remembers its workers for a second
        assert gateway.client.put(f"/v1/jobs/{secrets.token_hex(16)}", json=body).status_code == 503
        assert gateway.client.put(path, json=body).status_code == 200


def test_concurrent_submits_with_one_key_make_one_job(served: Served) -> None:
    def send(_: int) -> str:
        headers = {"Idempotency-Key": "many"}
        return str(served.client.post("/v1/jobs", json={"prompt": "a red circle"}, headers=headers).json()["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(16)))) == 1


def test_events_tell_the_whole_story_and_resume(served: Served) -> None:
    job = submit(served, previews=2)
    answer = served.client.get(f"/v1/jobs/{job['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    story = events(answer.text)
    assert [kind for _, kind, _ in story] == [
        "queued", "started", "progress", "preview", "progress", "preview", "succeeded",
    ]  # fmt: skip
    assert story[3][2]["mime"] == "image/png"
    assert story[-1][2]["files"][0]["id"].startswith(job["id"])
    resumed = served.client.get(job["urls"]["events"], headers={"Last-Event-ID": story[3][0]})
    assert events(resumed.text) == story[4:]
    over = served.client.get(job["urls"]["events"], headers={"Last-Event-ID": story[-1][0]})
    assert over.status_code == 204


def test_events_are_pushed_while_the_job_runs(served: Served) -> None:
    job = submit(served, prompt="hold a red circle")
    with served.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        lines = stream.iter_lines()
        seen = [line for line in (next(lines) for _ in range(7)) if line.startswith("event")]
        assert seen == ["event: queued", "event: started"]
        served.client.post(f"/v1/jobs/{job['id']}/cancel")
        rest = [line for line in lines if line.startswith("event")]
    assert rest == ["event: canceled"]


def test_a_silent_stream_pings(served: Served) -> None:
    job = submit(served, prompt="hold a red circle")
    before = served.settings
    served.server._gateway.settings = before.model_copy(update={"ping_seconds": 0.05})
    try:
        with served.client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            lines = stream.iter_lines()
            while next(lines) != ": ping":
                pass
    finally:
        served.server._gateway.settings = before
        served.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert served.until(job["id"], "canceled")


def test_cancel(served: Served) -> None:
    job = submit(served, prompt="hold a")
    served.until(job["id"], "running")
    asked = served.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert asked.status_code == 200
    assert served.until(job["id"], "canceled")["result"] is None
    assert served.client.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200  # once more does no harm
    done = submit(served)
    served.until(done["id"], "succeeded")
    late = served.client.post(f"/v1/jobs/{done['id']}/cancel")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "job_finished")


def test_a_queued_job_is_canceled_at_once(idle: Served) -> None:
    job = submit(idle)
    assert idle.client.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "canceled"
    assert idle.ask(lambda queue: queue.stats()).depth["normal"] == 0  # type: ignore[index]


def test_list_pages_newest_first(idle: Served) -> None:
    made = [submit(idle)["id"] for _ in range(5)]
    first = idle.client.get("/v1/jobs", params={"limit": 2, "status": "queued"}).json()
    assert [job["id"] for job in first["data"]] == [made[4], made[3]]
    assert first["has_more"] is True
    rest = idle.client.get("/v1/jobs", params={"after": first["last_id"], "status": "queued"}).json()
    assert [job["id"] for job in rest["data"]] == [made[2], made[1], made[0]]
    assert rest["has_more"] is False
    assert idle.client.get("/v1/jobs", params={"status": "running"}).json()["data"] == []
    for job_id in made:
        idle.client.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("status=done", "status"),
        ("state=queued", "state"),
    ],
)
def test_list_refuses_what_it_cannot_do(idle: Served, query: str, param: str) -> None:
    answer = idle.client.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param)


def test_dead_letters_can_be_read(idle: Served) -> None:
    job = submit(idle)

    async def kill(queue: JobQueue) -> None:
        for _ in range(idle.settings.max_suspect_attempts):
            claims: list[Claim] = await queue.take("doomed", 1)
            await queue.give_back(claims[0], suspect=True, reason="worker_crashed")

    idle.ask(kill)
    letters = idle.client.get("/v1/dead-letters").json()["data"]
    assert [(letter["job_id"], letter["failure"]["code"]) for letter in letters] == [(job["id"], "worker_crashed")]
    assert idle.client.get(f"/v1/jobs/{job['id']}").json()["status"] == "failed"
