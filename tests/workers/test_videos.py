"""Videos from request to stored files, alone and in company, on a real engine with tiny models of every family."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.errors import NotFound
from jobs.files import ResultStore
from jobs.job import JobResult, new_job_id
from pipelines.families import UnsupportedModel
from pipelines.media import read_facts
from pipelines.tiny_videos import VIDEO_FAMILIES
from tests.workers.kit import TOKEN, Kit, Notes, decibels, request, tiny_settings, video_request
from workers.products import products_of
from workers.seams import JobSeams
from workers.task import JobCanceledSignal, Task


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.rows.GAIN", 0.0)  # batch whether or not it pays for models so small
        made = Kit(tiny_settings(tmp_path_factory.mktemp("data"), ("stable-diffusion", *VIDEO_FAMILIES)))
        yield made
        made.close()


def frames_of(data: bytes) -> NDArray[np.float64]:
    """All frames of an archive of frames: [F, H, W, 3]."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name))), np.float64) for name in names])


def made_frames(kit: Kit, result: JobResult) -> NDArray[np.float64]:
    return frames_of(kit.files(result)[0])


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_every_family_makes_a_film(kit: Kit, family: str) -> None:
    notes = Notes()
    result = kit.run(video_request(family, previews=1, seed=5), notes=notes)
    film, thumbnail, sheet = result.files
    assert (film.mime, film.variant, film.num_frames, film.fps) == ("video/mp4", "video", 9, 8)
    assert film.duration_seconds == 9 / 8
    with av.open(str(kit.store.path_of(film.id))) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        stream = file.streams.video[0]
        assert (len(frames), frames[0].shape, float(stream.average_rate or 0)) == (9, (32, 32, 3), 8.0)
        facts = json.loads(file.metadata["comment"])["halftone"]
    assert (facts["prompt"], facts["seed"], facts["num_frames"], facts["model"]) == ("a red box", 5, 9, family)
    assert [thumbnail.variant, sheet.variant, thumbnail.mime] == ["thumbnail", "spritesheet", "image/webp"]
    with Image.open(kit.store.path_of(thumbnail.id)) as image:
        assert image.size == (thumbnail.width, thumbnail.height) == (32, 32)
    assert (sheet.width, sheet.height) == (3 * 32, 3 * 32)
    assert (read_facts(kit.files(result)[2]) or {})["seed"] == 5
    assert notes.steps == [(1, 3), (2, 3), (3, 3)]
    assert [mime for _, mime, _ in notes.previews] == ["image/webp"]
    assert set(notes.stages) == {"load", "text_encode", "denoise", "vae_decode", "encode", "store"}
    assert (result.used.num_frames, result.used.fps, result.used.width) == (9, 8, 32)
    assert result.costs.encode_seconds > 0 and result.costs.decode_seconds > 0


@pytest.mark.parametrize("output_format", ["webm", "webp", "gif", "frames"])
def test_every_format_is_stored_under_its_type(kit: Kit, output_format: str) -> None:
    result = kit.run(video_request(output_format=output_format, num_inference_steps=1))
    ext, mime = {
        "webm": ("webm", "video/webm"),
        "webp": ("webp", "image/webp"),
        "gif": ("gif", "image/gif"),
        "frames": ("zip", "application/zip"),
    }[output_format]
    film = result.files[0]
    assert film.id.endswith(f"-0.{ext}") and film.mime == mime
    assert film.size_bytes == kit.store.path_of(film.id).stat().st_size > 500


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(kit: Kit) -> None:
    one, again, other = (kit.run(video_request(seed=seed)) for seed in (3, 3, 4))
    assert kit.files(one) == kit.files(again)
    assert kit.files(one)[0] != kit.files(other)[0]


def test_a_video_does_not_depend_on_its_company(kit: Kit) -> None:
    def wanted(seed: int, **changes: Any) -> Any:
        return video_request(seed=seed, output_format="frames", **changes)

    mixed = [
        wanted(1),
        wanted(2, num_inference_steps=5, guidance_scale=7.0),
        wanted(3, guidance_scale=1.0),
        wanted(4, model="wan-per-token"),
        wanted(5, model="ltx", num_inference_steps=4),
        wanted(6, model="ltx"),
        request(seed=7),
    ]
    alone = [kit.run(one) for one in mixed]
    before = len(kit.batches)
    together = kit.run_together(mixed)
    assert max(batch.jobs for batch in kit.batches[before:]) >= 2, "calls of several videos ran as one"
    for one, other, asked in zip(alone, together, mixed, strict=True):
        if asked.kind == "video":
            assert decibels(made_frames(kit, one), made_frames(kit, other)) >= 50
        else:
            assert decibels(kit.pictures(one)[0], kit.pictures(other)[0]) >= 50


def test_odd_sides_are_refused_where_the_format_cannot_hold_them(kit: Kit) -> None:
    wanted = video_request().model_copy(update={"width": 33})
    used = kit.run(video_request(num_inference_steps=1)).used
    with pytest.raises(UnsupportedModel, match="even sides only, not 33x32"):
        next(products_of(wanted, torch.zeros(1, 9, 3, 32, 33), used, lambda: None))
    with pytest.raises(UnsupportedModel, match="made 5 frames where 9"):
        next(products_of(video_request(), torch.zeros(1, 5, 3, 32, 32), used, lambda: None))


def test_a_cancel_ends_decoding_and_encoding(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("vae_decode", "encode"):
        task, asked = Task(new_job_id(), TOKEN), 0
        alive = JobSeams.alive

        def cancel_third(seams: JobSeams) -> None:
            nonlocal asked
            decoded = "vae_decode" in seams._stages.seconds
            asked += decoded == (stage == "encode")  # noqa: B023
            if asked == 3:
                task.cancel()  # noqa: B023
            alive(seams)  # noqa: B023

        monkeypatch.setattr(JobSeams, "alive", cancel_third)
        with pytest.raises(JobCanceledSignal):
            kit.run(video_request(), task)
        monkeypatch.undo()
        assert asked == 3
        assert kit.store_files(task.job_id) == []
    assert kit.run(video_request()).files, "its place is free again"


WRITER = """
import sys, time
from pathlib import Path
import torch
from jobs.files import ResultStore
from pipelines.video_files import Film, write_video

root, job_id, token, output_format = sys.argv[1:]
frames = torch.rand(200, 3, 64, 64)
count = 0

def between():
    global count
    count += 1
    if count == 150:
        print("writing", flush=True)
        time.sleep(60)

with ResultStore(Path(root), 3600).writing(job_id, token, 0, output_format) as new:
    write_video(new.path, Film(frames, 8, {}), output_format, None, between)
"""


@pytest.mark.parametrize("output_format", ["mp4", "webm"])
def test_an_encoder_killed_in_mid_file_leaves_nothing_to_be_served(output_format: str, tmp_path: Path) -> None:
    job_id, store = new_job_id(), ResultStore(tmp_path, 3600)
    command = [sys.executable, "-c", WRITER, str(tmp_path), job_id, TOKEN, output_format]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, encoding="utf-8") as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        (half,) = (path for path in tmp_path.rglob("*") if path.is_file())
        assert half.stat().st_size > 1000, "it was killed in the middle"
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(NotFound):
        store.path_of(f"{job_id}-{TOKEN}-0.{output_format}")
    assert list(store.attempts(time.time() + 1)) == [(job_id, TOKEN)], "the sweeper finds what is left"
    assert store.discard(job_id, TOKEN) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_long_decode_lends_its_turn_to_a_picture(kit: Kit) -> None:
    """A picture's steps go on while a video is decoded: its calls run between the layers of the autoencoder."""
    kit.run(request())
    picture_steps: list[bool] = []
    decoding, over = threading.Event(), threading.Event()

    class Watches(Notes):
        def stepped(self, step: int, total: int) -> None:
            super().stepped(step, total)
            if step == total:
                decoding.set()

    class Picture(Notes):
        def stepped(self, step: int, total: int) -> None:
            picture_steps.append(over.is_set())

    def video() -> None:
        kit.run(video_request(num_inference_steps=1, num_frames=81, width=96, height=96), notes=watched)
        over.set()

    watched = Watches()
    thread = threading.Thread(target=video)
    thread.start()
    assert decoding.wait(60)
    kit.run(request(num_inference_steps=6), notes=Picture())
    thread.join(120)
    assert picture_steps == [False] * 6, "all steps were done before the video was"
