"""Videos on real parts: `halftone serve`, a tiny random Wan folder, real HTTP; played by a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from bench.service import service
from pipelines.tiny_videos import save_tiny_video
from tests.e2e.browser import chromium, play

SHEET = {
    "defaults": {
        "width": 64,
        "height": 48,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "num_frames": 17,
        "fps": 8,
    },
    "limits": {"min_side": 16, "max_side": 256, "multiple_of": 16, "max_pixels": 65536},
}


def add_models(data: Path) -> None:
    """Puts tiny models of three families where the service looks for them."""
    for family in ("wan", "cogvideox", "hunyuan-video"):
        folder = save_tiny_video(family, data / "models" / family)
        (folder / "halftone.json").write_text(json.dumps(SHEET), encoding="utf-8")


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with service(add_models) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


def made(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    """A finished video, asked for as OpenAI's clients do."""
    answer = http.post("/v1/videos", json={"prompt": "a red box", "model": "wan", "seed": 7} | fields)
    assert answer.status_code in (200, 202), answer.text
    video: dict[str, Any] = answer.json()
    deadline = time.monotonic() + 200
    while video["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline, video
        time.sleep(0.1)
        video = http.get(f"/v1/videos/{video['id']}").json()
    assert video["status"] == "completed", video
    return video


def content(http: httpx.Client, video: dict[str, Any], variant: str = "video") -> httpx.Response:
    answer = http.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("model", ["wan", "cogvideox", "hunyuan-video"])
def test_a_prompt_becomes_a_film(http: httpx.Client, model: str) -> None:
    video = made(http, model=model)
    answer = content(http, video)
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content), "r") as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert stream.codec_context.name == "h264"
        assert (len(frames), frames[0].shape, float(stream.average_rate or 0)) == (17, (48, 64, 3), 8.0)
        assert json.loads(file.metadata["comment"])["halftone"]["prompt"] == "a red box"
    assert answer.content.find(b"moov") < answer.content.find(b"mdat")
    for variant, size in (("thumbnail", (64, 48)), ("spritesheet", (4 * 64, 4 * 48))):
        still = content(http, video, variant)
        assert Image.open(io.BytesIO(still.content)).size == size


def test_the_same_seed_gives_the_same_frames(http: httpx.Client) -> None:
    def frames(seed: int) -> list[bytes]:
        archive = content(http, made(http, seed=seed, output_format="frames")).content
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            return [files.read(name) for name in sorted(files.namelist()) if name.endswith(".png")]

    one, again, other = frames(3), frames(3), frames(4)
    assert len(one) == 17 and one == again and one != other


def test_frame_counts_that_the_model_cannot_make_are_refused(http: httpx.Client) -> None:
    for fields in ({"num_frames": 10}, {"num_frames": 10_000}, {"width": 40}, {"fps": 0}):
        answer = http.post("/v1/videos", json={"prompt": "a red box", "model": "wan"} | fields)
        assert 400 <= answer.status_code < 500, (fields, answer.text)
    refused = http.post("/v1/videos", json={"prompt": "a red box", "model": "wan", "num_frames": 10})
    assert re.search(r"\b9\b.*\b13\b", refused.text), "it names the counts on both sides"


@pytest.mark.parametrize("output_format", ["mp4", "webm"])
def test_a_real_browser_plays_it(http: httpx.Client, tmp_path: Path, output_format: str) -> None:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    video = made(http, output_format=output_format)
    told = play(program, f"{http.base_url}/v1/videos/{video['id']}/content".replace("//v1", "/v1"), tmp_path / "chrome")
    assert "error" not in told, told
    assert (told["width"], told["height"]) == (64, 48)
    assert abs(told["duration"] - 17 / 8) < 0.05 and abs(told["at"] - told["duration"]) < 0.3
    assert told["frames"] >= 15, "frames were decoded and shown"


def test_a_cancel_ends_a_video_and_its_metrics_count_frames(http: httpx.Client) -> None:
    job = http.post(
        "/v1/jobs",
        json={"kind": "video", "prompt": "a box", "model": "wan", "num_frames": 81, "num_inference_steps": 50},
    ).json()
    while http.get(f"/v1/jobs/{job['id']}").json()["progress"]["step"] < 1:
        time.sleep(0.05)
    http.post(f"/v1/jobs/{job['id']}/cancel")
    deadline = time.monotonic() + 30
    while (status := http.get(f"/v1/jobs/{job['id']}").json()["status"]) != "canceled":
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def test_previews_come_as_a_few_frames(http: httpx.Client) -> None:
    job = http.post("/v1/jobs", json={"kind": "video", "prompt": "a box", "model": "wan", "previews": 1}).json()
    with http.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
        lines = [line for line in events.iter_lines() if line.startswith("data:")]
    previews = [told for told in (json.loads(line[5:]) for line in lines) if "b64" in told]
    assert len(previews) == 1
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(previews[0]["b64"]))))
    assert strip.shape[:2] == (48, 3 * 64)
