"""The built-in video model on real parts: prompts in, moving pictures out, that show what was asked and play."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bench.service import service
from halftone import Client
from halftone.images import Video
from jobs.quality import Report
from tests.e2e.browser import chromium, play
from zoo.build import RECIPES
from zoo.film_accuracy import FilmTask, motion_right, object_right, unseen_films
from zoo.shapes.motion_checker import film_faults

MODEL = "shapes-video"
TASKS = unseen_films(8, seed=5)
Film = NDArray[np.uint8]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with service() as found:
        yield found


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{port}", timeout=240) as found:
        yield found


def played(data: bytes) -> Film:
    """An MP4's frames [F, H, W, 3]."""
    with av.open(io.BytesIO(data), "r") as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(np.uint8)


def frames(video: Video) -> Film:
    """The frames of a lossless archive [F, H, W, 3]."""
    with zipfile.ZipFile(io.BytesIO(video.data)) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".png"))
        return np.stack([np.array(Image.open(io.BytesIO(files.read(name))).convert("RGB")) for name in names])


def wrong(task: FilmTask, film: Film) -> list[str]:
    return film_faults(film, task.scene)


@pytest.mark.parametrize("profile", ["float", "trdq-w8a8"])
def test_films_show_what_was_asked(client: Client, profile: str) -> None:
    """As files that were compressed; the service's own default model."""
    found = []
    for seed, task in enumerate(TASKS):
        video = client.generate_video(task.prompt, profile=profile, seed=seed)
        assert (video.used.model, video.used.profile) == (MODEL, profile)
        film = played(video.data)
        assert film.shape == (17, 64, 64, 3)
        found.append(wrong(task, film))
    assert sum(object_right(each) for each in found) >= 6, found
    assert sum(motion_right(each) for each in found) >= 6, found


def test_a_browser_plays_it(client: Client, port: int, tmp_path: Path) -> None:
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    asked = {"prompt": TASKS[0].prompt, "seconds": "2"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60) as http:
        video = http.post("/videos", json=asked).raise_for_status().json()
        assert video["model"] == MODEL
        client.wait(video["id"], timeout=200)
    told = play(program, f"http://127.0.0.1:{port}/v1/videos/{video['id']}/content", tmp_path / "chrome")
    assert (told["width"], told["height"]) == (64, 64) and told["frames"] >= 15, told
    assert abs(told["duration"] - 17 / 8) < 0.05


def test_every_profile_films_the_same_twice_and_no_other_does(client: Client) -> None:
    cards = {card.name: card for card in client.profiles() if card.model == MODEL}
    assert set(cards) == {"float", *RECIPES[MODEL]}
    fields: dict[str, Any] = {"seed": 3, "output_format": "frames"}
    first: dict[str, Film] = {}
    for name in (*cards, *reversed(cards)):
        video = client.generate_video(TASKS[1].prompt, profile=name, **fields)
        plan, film = cards[name].guidance, frames(video)
        assert video.used.guidance_saving == (None if plan is None else pytest.approx(plan.saving))
        assert not video.notices
        assert np.array_equal(film, first.setdefault(name, film)), f"{name} films something else the second time"
    assert len({film.tobytes() for film in first.values()}) == len(first), "profiles differ"
    for film in first.values():
        error = np.square(film.astype(np.float64) - first["float"]).mean()
        assert error < 255**2 / 10**2.5  # 25 dB


def test_a_video_held_against_float(client: Client) -> None:
    done = client.compare(TASKS[2].prompt, model=MODEL, profiles=["trdq-w8a8"], timeout=240)
    report = Report.model_validate(done.report)
    (one,) = report.profiles
    assert one.psnr_db is None or one.psnr_db > 25
    assert one.prompt_accuracy in (0.0, 1.0) and "prompt_accuracy" not in report.not_measured
