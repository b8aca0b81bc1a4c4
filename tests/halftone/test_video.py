"""Videos by both clients, the command line, and without a server: the whole service on a tiny random Wan."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from halftone import AsyncClient, Client, Event, JobView, Video
from halftone.cli import app
from halftone.images import VIDEO_FORMATS, video_file
from jobs import errors
from jobs.job import ResultFile
from pipelines.tiny_videos import save_tiny_video

SMALL: dict[str, Any] = {"num_frames": 5, "fps": 4, "seed": 7}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_video("wan", tmp_path_factory.mktemp("models") / "wan")
    sheet = {
        "defaults": {
            "width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 3.0, "num_frames": 9, "fps": 8,
        },
        "limits": {
            "min_side": 16, "max_side": 64, "multiple_of": 16, "max_pixels": 4096,
            "max_frames": 17, "frames_multiple_of": 4,
        },
    }  # fmt: skip
    (folder / "halftone.json").write_text(json.dumps(sheet))
    return folder


@pytest.fixture(scope="module")
def service(serve: Callable[..., Any], wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    variables = {"HALFTONE_DEFAULT_VIDEO_MODEL": "wan", "HALFTONE_THREADS": "1"}
    with serve(tmp_path_factory.mktemp("serve"), "--model", str(wan), **variables) as running:
        running.until_ready()
        yield running


@pytest.fixture
def client(service: Any) -> Iterator[Client]:
    with Client(service.url) as opened:
        yield opened


def halftone(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def frames(data: bytes) -> list[tuple[int, int]]:
    """(width, height) of each frame."""
    with av.open(io.BytesIO(data), "r") as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_a_video_is_made_and_saved(client: Client, tmp_path: Path) -> None:
    seen: list[Event] = []
    video = client.generate_video("a red circle moves", size="48x32", previews=1, on_event=seen.append, **SMALL)
    assert (video.seed, video.about.mime, video.about.duration_seconds) == (7, "video/mp4", 1.25)
    assert (video.used.model, video.used.num_frames, video.used.fps) == ("wan", 5, 4)
    assert frames(video.data) == [(48, 32)] * 5
    [path] = video.save(tmp_path / "x.mp4")
    assert path.read_bytes() == video.data
    assert {"started", "progress", "preview", "succeeded"} <= {event.type for event in seen}
    again = client.generate_video("a red circle moves", size="48x32", **SMALL)
    assert again.data == video.data, "the same seed makes the same video"


def test_the_async_client_does_the_same(service: Any) -> None:
    async def run() -> tuple[Video, JobView]:
        async with AsyncClient(service.url) as client:
            made = client.generate_video("a red circle moves", output_format="gif", **SMALL)
            job = await client.submit("a blue square", kind="video", seconds=1.0, fps=4)
            async for _ in client.watch(job.id):
                pass
            return await made, await client.job(job.id)

    video, job = asyncio.run(run())
    with Image.open(io.BytesIO(video.data)) as picture:
        assert (picture.format, getattr(picture, "n_frames", 1)) == ("GIF", 5)
    assert (job.kind, job.request["num_frames"]) == ("video", 5)
    assert job.result is not None and {file.variant for file in job.result.files} >= {"video", "thumbnail"}


def test_faults_are_told(client: Client) -> None:
    with pytest.raises(errors.InvalidRequest, match="Nearest: 5 or 9"):
        client.generate_video("a red circle", num_frames=7)
    with pytest.raises(errors.InvalidRequest, match="makes pictures"):
        client.generate_video("a red circle", model="null")
    with pytest.raises(errors.InvalidRequest, match="makes videos"):
        client.generate("a red circle", model="wan")
    picture = ResultFile(id="f", mime="image/png", size_bytes=1, sha256="0", width=8, height=8, seed=1)
    with pytest.raises(errors.JobFailed, match="made no video; its files are: picture"):
        video_file([picture])


def test_by_the_command_line(service: Any, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_URL", service.url)
    asked = ("generate", "a red circle moves", "--video", "--frames", "5", "--fps", "4", "--seed", "7")
    for suffix in VIDEO_FORMATS:
        result = halftone(*asked, "-o", f"x{suffix}", "--json")
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["files"][0]["path"] == f"x{suffix}"
        assert (alone / f"x{suffix}").stat().st_size > 0
    assert frames((alone / "x.mp4").read_bytes()) == [(32, 32)] * 5
    named = halftone("generate", "A red circle!", "--video", "--seconds", "0.5", "--seed", "7")
    assert named.exit_code == 0 and (alone / "a-red-circle-7.mp4").exists(), named.output
    assert "5 frames at 8 fps" in named.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--frames", "5"), "--frames is for videos; add --video"),
        (("--video", "-o", "x.png"), "must end in one of .mp4, .webm, .webp, .gif, .zip"),
        (("--video", "-o", "x.mp4", "--format", "gif"), "is named as mp4, the format asked for is gif"),
        (("--video", "--frames", "6"), "Nearest: 5 or 9"),
        (("--video", "--fps", "0"), "fps"),
        (("--video", "--size", "17x16"), "multiple of 16"),
    ],
)
def test_wrong_commands_are_a_line(
    service: Any, alone: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], text: str
) -> None:
    monkeypatch.setenv("HALFTONE_URL", service.url)
    result = halftone("generate", "a red circle", *arguments)
    assert (result.exit_code, result.stdout.strip()) == (1, "")
    assert text in result.stderr


def test_without_a_server(wan: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFTONE_MODELS", str(wan))
    monkeypatch.setenv("HALFTONE_DATA", str(alone / "data"))
    monkeypatch.setenv("HALFTONE_DEFAULT_VIDEO_MODEL", "wan")
    monkeypatch.setenv("HALFTONE_THREADS", "1")
    asked = ("generate", "a red circle moves", "--video", "--local", "--frames", "5", "--seed", "7")
    result = halftone(*asked, "-o", "x.mp4", "--json")
    assert result.exit_code == 0, result.output
    assert frames((alone / "x.mp4").read_bytes()) == [(32, 32)] * 5
    refused = halftone("generate", "a red circle", "--video", "--local", "--frames", "6")
    assert refused.exit_code == 1 and "Nearest: 5 or 9" in refused.stderr
