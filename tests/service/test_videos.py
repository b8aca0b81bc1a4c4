"""/v1/videos over real HTTP: from prompt to file, OpenAI's fields and forms, lists, deletes, and every refusal."""

from __future__ import annotations

import hashlib
import io
import secrets
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import av
import httpx
import pytest
from PIL import Image

from service.openai_videos import DOCUMENTED
from service.settings import Settings

if TYPE_CHECKING:
    from tests.service.conftest import Served

ROUTE = "/v1/videos"
PROMPT = {"prompt": "a red circle moves left"}


def create(served: Served, **fields: Any) -> dict[str, Any]:
    answer = served.client.post(ROUTE, json=PROMPT | fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def until(served: Served, video_id: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while (video := served.client.get(f"{ROUTE}/{video_id}").json())["status"] not in states:
        assert time.monotonic() < deadline, video
        time.sleep(0.01)
    return dict(video)


def refused(served: Served, param: str | None, text: str, route: str = ROUTE, status: int = 422, **fields: Any) -> None:
    answer = served.client.post(route, json=PROMPT | fields)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert text in error["message"], error


def test_a_prompt_goes_in_and_a_video_comes_out(served: Served) -> None:
    video = create(served, seed=7, num_frames=9, fps=4, width=32, previews=1)
    assert (video["object"], video["status"], video["model"], video["progress"]) == ("video", "queued", "moving", 0)
    assert (video["seconds"], video["size"], video["error"], video["completed_at"]) == ("2.25", "32x16", None, None)
    assert video["halftone"] == {"job_id": video["id"], "used": None, "costs": None, "notices": [], "choice": None}
    done = until(served, video["id"], "completed")
    assert done["progress"] == 100
    assert done["created_at"] <= done["completed_at"] < done["expires_at"]
    assert done["halftone"]["used"]["seed"] == 7
    assert done["halftone"]["costs"]["denoise_seconds"] > 0
    content = served.client.get(done["urls"]["content"])
    assert content.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(content.content), "r") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (32, 16)
        assert float(stream.average_rate or 0) == 4
        assert len(list(container.decode(stream))) == 9
    job = served.client.get(f"/v1/jobs/{video['id']}").json()
    assert (job["kind"], job["status"], job["request"]["num_frames"]) == ("video", "succeeded", 9)
    assert [file["variant"] for file in job["result"]["files"]] == ["video", "thumbnail", "spritesheet"]
    assert job["result"]["files"][0]["duration_seconds"] == 2.25


@pytest.mark.parametrize(
    ("output_format", "mime"),
    [("webm", "video/webm"), ("webp", "image/webp"), ("gif", "image/gif"), ("frames", "application/zip")],
)
def test_formats(served: Served, output_format: str, mime: str) -> None:
    video = until(served, create(served, output_format=output_format)["id"], "completed")
    assert video["output_format"] == output_format
    assert served.client.get(video["urls"]["content"]).headers["content-type"] == mime


def test_variants_and_ranges(served: Served) -> None:
    video = until(served, create(served)["id"], "completed")
    for variant in ("thumbnail", "spritesheet"):
        small = served.client.get(f"{ROUTE}/{video['id']}/content", params={"variant": variant})
        assert Image.open(io.BytesIO(small.content)).format == "WEBP"
    address = video["urls"]["content"]
    whole = served.client.get(address).content
    part = served.client.get(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    head = served.client.head(address)
    assert (head.headers["content-length"], head.content) == (str(len(whole)), b"")
    assert served.client.get(address, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert served.client.get(f"{ROUTE}/{video['id']}/content?variant=sound").status_code == 422


def test_a_long_file_comes_in_pieces(served: Served) -> None:
    video = until(served, create(served)["id"], "completed")
    file = served.client.get(f"/v1/jobs/{video['id']}").json()["result"]["files"][0]["id"]
    data = secrets.token_bytes(3_000_001)
    (served.settings.results_dir / file[:2] / file).write_bytes(data)
    assert served.client.get(video["urls"]["content"]).content == data
    part = served.client.get(video["urls"]["content"], headers={"Range": "bytes=299999-2700000"})
    assert part.content == data[299_999:2_700_001]
    with served.client.stream("GET", video["urls"]["content"]) as answer:
        next(answer.iter_bytes(1000))  # and leave
    assert served.client.get(video["urls"]["content"]).status_code == 200


@pytest.mark.parametrize("body", [example["value"] for example in DOCUMENTED.values()])
def test_documented_examples_are_valid(served: Served, body: dict[str, Any]) -> None:
    fitted = body | ({"model": "moving"} if "model" in body else {})
    fitted |= {"size": "16x16"} if "size" in body else {}
    fitted |= {"width": 32, "height": 32} if "width" in body else {}
    answer = served.client.post(ROUTE, json=fitted)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "frames", "fps"),
    [
        ({}, 5, 8),
        ({"seconds": "2"}, 17, 8),
        ({"seconds": 1}, 9, 8),
        ({"seconds": "0.01"}, 1, 8),
        ({"seconds": 2, "fps": 10}, 21, 10),
        ({"seconds": "2", "num_frames": 17}, 17, 8),
        ({"seconds": 0.875}, 9, 8),  # 7 frames lie between 5 and 9: the larger
        ({"size": "32x24", "width": 32}, 5, 8),
        ({"size": "auto", "num_frames": None, "seconds": None}, 5, 8),
    ],
)
def test_seconds_and_sizes_become_frames_and_sides(idle: Served, fields: dict[str, Any], frames: int, fps: int) -> None:
    video = create(idle, **fields)
    assert (video["num_frames"], video["fps"]) == (frames, fps)
    assert video["seconds"] == f"{frames / fps:.6g}"
    assert video["size"] == (fields["size"] if fields.get("size", "auto") != "auto" else "16x16")
    idle.client.delete(f"{ROUTE}/{video['id']}")


def test_what_cannot_be_is_refused_with_the_reason(idle: Served) -> None:
    refused(idle, "num_frames", "1 + a multiple of 4 frames, at most 21; got 16. Nearest: 13 or 17", num_frames=16)
    refused(idle, "num_frames", "at most 21; got 10000. Nearest: 21", num_frames=10_000)
    refused(idle, "num_frames", "greater than or equal to 1", num_frames=0)
    refused(idle, "fps", "greater than or equal to 1", fps=0)
    refused(idle, "width", "multiple of 8 pixels; got 17", width=17)
    refused(idle, "size", "size: ", size="17x16")
    refused(idle, "seconds", "at most 21 frames, which at 8 fps are 2.625 seconds; got 12", seconds="12")
    refused(idle, "seconds", "are 17 frames of moving, and num_frames says 5", seconds=2, num_frames=5)
    refused(idle, "seconds", "number of seconds", seconds="long")
    refused(idle, "size", "32x16 contradicts width 16", size="32x16", width=16)
    refused(
        idle, "input_reference", "pictures are not taken", input_reference={"image_url": "https://example.org/a.png"}
    )
    refused(idle, "output_compression", "gif is of 256 colours", output_format="gif", output_compression=50)
    refused(idle, "model", "tiny makes pictures, not videos; ask POST /v1/images/generations", model="tiny")
    refused(
        idle,
        "model",
        "moving makes videos, not pictures; ask POST /v1/videos",
        "/v1/images/generations",
        model="moving",
    )
    refused(idle, "model", "moving makes videos", "/v1/jobs", model="moving")
    refused(idle, "kind", "'image', 'video'", "/v1/jobs", kind="sound")
    refused(idle, "num_frames", "unknown field 'num_frames'", "/v1/jobs", num_frames=5)
    assert idle.client.get(ROUTE).json()["data"] == []


def test_a_format_that_cannot_hold_it_is_refused(idle: Served) -> None:
    refused(idle, "fps", "gif shows at most 50 frames a second, not 60", output_format="gif", fps=60)


def test_pixels_over_all_frames_are_bounded(make_settings: Callable[..., Settings], serve: Callable[..., Any]) -> None:
    with serve(make_settings(max_video_pixels=16 * 16 * 5)) as gateway:
        refused(gateway, "num_frames", "9 frames of 16x16 are 2304 pixels; at most 1280", num_frames=9)


def test_by_the_native_route(served: Served) -> None:
    body = PROMPT | {"kind": "video", "num_frames": 5, "previews": 2, "seconds": 0.6}
    job = served.client.post("/v1/jobs", json=body).json()
    assert (job["kind"], job["request"]["fps"]) == ("video", 8)
    assert served.until(job["id"], "succeeded")["result"]["files"][0]["mime"] == "video/mp4"
    story = served.client.get(job["urls"]["events"]).text
    assert story.count("event: preview") == 2
    assert served.client.get(f"{ROUTE}/{job['id']}").json()["status"] == "completed"


def test_failed_and_canceled_videos(served: Served) -> None:
    failed = until(served, create(served, prompt="fail a")["id"], "failed")
    assert failed["error"] == {"code": "out_of_memory", "message": "ask for a smaller picture"}
    answer = served.client.get(failed["urls"]["content"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_content")
    held = create(served, prompt="hold a")
    until(served, held["id"], "in_progress")
    assert "not there yet" in served.client.get(held["urls"]["content"]).json()["error"]["message"]
    served.client.post(held["urls"]["cancel"])
    assert until(served, held["id"], "failed")["error"]["code"] == "canceled"


def test_a_repeat_under_one_key_is_the_same_video(served: Served) -> None:
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    first, second = (served.client.post(ROUTE, json=PROMPT, headers=headers).json()["id"] for _ in range(2))
    assert first == second
    other = served.client.post(ROUTE, json=PROMPT | {"seed": 1}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


def test_lists_page_both_ways_and_hold_videos_only(idle: Served) -> None:
    made = [create(idle)["id"] for _ in range(5)]
    picture = idle.client.post("/v1/jobs", json={"prompt": "a"}).json()["id"]
    first = idle.client.get(ROUTE, params={"limit": 2}).json()
    assert [video["id"] for video in first["data"]] == made[:-3:-1]
    assert (first["object"], first["has_more"], first["last_id"]) == ("list", True, made[3])
    rest = idle.client.get(ROUTE, params={"after": first["last_id"]}).json()
    assert [video["id"] for video in rest["data"]] == made[2::-1]
    up = idle.client.get(ROUTE, params={"order": "asc", "after": made[2]}).json()
    assert ([video["id"] for video in up["data"]], up["has_more"]) == (made[3:], False)
    assert idle.client.get(ROUTE, params={"order": "up"}).status_code == 422
    assert idle.client.get(f"{ROUTE}/{picture}").status_code == 404
    for job_id in (*made, picture):
        idle.client.post(f"/v1/jobs/{job_id}/cancel")
        idle.client.delete(f"{ROUTE}/{job_id}")


def test_a_deleted_video_is_gone_with_its_files(served: Served) -> None:
    video = until(served, create(served)["id"], "completed")
    files = [file["id"] for file in served.client.get(f"/v1/jobs/{video['id']}").json()["result"]["files"]]
    answer = served.client.delete(f"{ROUTE}/{video['id']}")
    assert answer.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
    for path in (f"{ROUTE}/{video['id']}", video["urls"]["content"], f"/v1/jobs/{video['id']}"):
        assert served.client.get(path).status_code == 404
    assert [served.client.get(f"/v1/files/{file}").status_code for file in files] == [404] * 3
    assert served.client.delete(f"{ROUTE}/{video['id']}").status_code == 404
    assert video["id"] not in [other["id"] for other in served.client.get(ROUTE).json()["data"]]


@pytest.mark.parametrize("prompt", ["hold a", "slow a"])
def test_a_running_video_is_stopped_and_leaves_nothing(served: Served, prompt: str) -> None:
    video = create(served, prompt=prompt)
    until(served, video["id"], "in_progress")
    with served.client.stream("GET", video["urls"]["events"]) as events:
        assert served.client.delete(f"{ROUTE}/{video['id']}").json()["deleted"] is True
        assert served.client.get(f"{ROUTE}/{video['id']}").status_code == 404
        assert "event: canceled" in [line for line in events.iter_lines() if line.startswith("event")]
    deadline = time.monotonic() + 5
    while served.ask(lambda queue: queue.stats()).pending or list(
        served.settings.results_dir.glob(f"*/{video['id']}*")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_videos_belong_to_a_key(
    make_settings: Callable[..., Settings], serve: Callable[..., Any], work: Callable[..., Any]
) -> None:
    keys = ["alpha", "beta"]
    settings = make_settings(api_key_hashes=",".join(hashlib.sha256(key.encode()).hexdigest() for key in keys))
    worker = work(settings)
    worker.start()
    own, other = ({"Authorization": f"Bearer {key}"} for key in keys)
    with serve(settings) as gateway:
        video = gateway.client.post(ROUTE, json=PROMPT, headers=own).json()
        path = f"{ROUTE}/{video['id']}"
        assert [gateway.client.get(path, headers=key).status_code for key in (own, other)] == [200, 404]
        assert gateway.client.get(f"{path}/content", headers=other).status_code == 404
        assert gateway.client.delete(path, headers=other).status_code == 404
        assert gateway.client.get(ROUTE, headers=other).json()["data"] == []
        assert gateway.client.get(ROUTE).status_code == 401
        assert gateway.client.delete(path, headers=own).status_code == 200
    worker.stop()


def form(served: Served, fields: dict[str, str], **changes: Any) -> httpx.Response:
    files: Any = {name: (None, value) for name, value in fields.items()}
    return served.client.post(ROUTE, files=files, **changes)


def test_a_form_is_read_as_text(idle: Served) -> None:
    answer = form(idle, PROMPT | {"seconds": "1", "size": "32x16", "seed": "5", "guidance_scale": "2.5"})
    assert answer.status_code == 200, answer.text
    video = answer.json()
    assert (video["num_frames"], video["size"], video["seed"], video["guidance_scale"]) == (9, "32x16", 5, 2.5)
    idle.client.delete(f"{ROUTE}/{video['id']}")


def test_forms_that_are_refused(idle: Served) -> None:
    sent: Any = {"prompt": (None, "a red circle"), "input_reference": ("a.png", b"\x89PNG", "image/png")}
    answer = idle.client.post(ROUTE, files=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "input_reference")
    assert "files are not taken" in answer.json()["error"]["message"]
    wrong = form(idle, PROMPT | {"seed": "five"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "seed")
    foreign = form(idle, PROMPT, headers={"Origin": "https://example.org"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert form(idle, PROMPT, headers={"Origin": idle.url}).status_code == 200
    assert form(idle, {"prompt": "a" * 300_000}).status_code == 413
    for content, kind in (
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na', "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (b"--x\r\n" * 200 + b"--x--", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data; boundary*=idna''%ff"),
        (
            b"--x\r\nContent-Disposition: form-data; name=a; filename*=idna''%ff\r\n\r\n\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
    ):
        assert idle.client.post(ROUTE, content=content, headers={"Content-Type": kind}).status_code == 400
    twice = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n' * 2 + b"--x--\r\n"
    answer = idle.client.post(ROUTE, content=twice, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "prompt")


@pytest.fixture(autouse=True)
def _leave_nothing_waiting(idle: Served) -> Iterator[None]:
    yield
    for video in idle.client.get(ROUTE).json()["data"]:
        idle.client.delete(f"{ROUTE}/{video['id']}")
